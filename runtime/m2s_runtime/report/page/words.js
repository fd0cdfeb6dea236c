// Names, units and explanations.
const STATES = {
  failed: "Failed", flagged: "Flagged", warned: "Warning", fine: "Fine", skipped: "Skipped",
};

function stateOf(item) {
  if (item.status !== "ok") return item.status === "failed" ? "failed" : "skipped";
  return item.flags ? "flagged" : item.message ? "warned" : "fine";
}
const ORDER = Object.keys(STATES);

const FLAGS = {
  doubtful: "Stacks that look like this one were often reconstructed badly when it was tried, or none like it was: see the Dice to expect.",
  labels_contradict: "The mask does not look like the label scheme that was named.",
  few_slices: "Few slices hold wall: the shape between them is guessed more than seen.",
  torn_wall: "The ring is open in many slices.",
  open_ring: "The wall closes in no slice: the heart was centred on the wall, not on its cavity.",
  gap: "A slice without wall inside the stack was filled from its neighbours.",
  base_unclear: "Which end of the stack is the base could not be told: the order of the file was kept.",
  slice_axis_unclear: "No axis is clearly the thickest: the last was taken for the slice axis.",
  specks_removed: "Tiny pieces of wall were taken for slips of the segmentation and left out.",
  small_wall: "The wall is smaller than nearly all of the hearts that the networks learnt from.",
  large_wall: "The wall is larger than nearly all of the hearts that the networks learnt from.",
  short_wall: "The wall is short for its width: slices may be missing at an end, or the distance between them may be wrong.",
  slices_disagree: "The surface does not agree with the slices, or with one of them.",
  spread_high: "The posterior samples lie far apart.",
  pieces_dropped: "The reconstruction fell into pieces: the surface is that of the largest.",
  step_out_of_range: "The slices lie closer together or farther apart than any seen in training.",
  apex_closed: "The apex was open and has been closed.",
  tunnels_filled: "The surface had tunnels, which have been filled.",
};

const NUMBERS = {
  volume_ml: ["Wall volume", "ml"], mass_g: ["Wall mass", "g"], cavity_ml: ["Cavity volume", "ml"],
  length_mm: ["Length", "mm"], thickness_mean_mm: ["Wall thickness, mean", "mm"],
  thickness_max_mm: ["Wall thickness, greatest", "mm"], slices: ["Slices used", ""],
  step_mm: ["Distance between slices", "mm"], agreement_mean: ["Agreement with the slices, mean Dice", ""],
  agreement_least: ["Agreement of the worst slice", ""], expected_dice: ["Dice to expect", ""], mean_shift_mm: ["Slice shift, mean", "mm"],
  max_shift_mm: ["Slice shift, longest", "mm"], spread_mean_mm: ["Spread of the samples, mean", "mm"],
  spread_p95_mm: ["Spread, 95th percentile", "mm"],
  shift_right_mm: ["Slice shift, left to right", "mm"], shift_anterior_mm: ["Slice shift, back to front", "mm"],
  shift_superior_mm: ["Slice shift, up and down", "mm"], volume_sd_ml: ["Wall volume, spread", "ml"],
  mass_sd_g: ["Wall mass, spread", "g"], closed: ["Surface closed", ""], components: ["Pieces", ""], genus: ["Handles", ""],
  seconds: ["Time", "s"],
};

// A column of the table that this page has no words for.
function nameOf(column) {
  if (NUMBERS[column]) return NUMBERS[column];
  const unit = { mm: "mm", ml: "ml", g: "g", percent: "%", ms: "ms", mm2: "mm²" }[column.split("_").pop()];
  const words = column.split("_").slice(0, unit ? -1 : undefined).join(" ");
  return [words.charAt(0).toUpperCase() + words.slice(1), unit || ""];
}

function shown(value) {
  if (value === undefined || value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}
