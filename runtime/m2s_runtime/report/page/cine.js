// The frames of a cine: a slider, a way to play them, and the course of the cavity's volume.
let playing = null;

function stop() {
  clearTimeout(playing);
  playing = null;
}

function framesOf(item) {
  return report.cases.filter((one) => one.group === item.group).sort((a, b) => a.frame - b.frame);
}

// The panel stays while its frames change, or the slider would slip from the hand that moves it.
let cinema = { group: null, node: null, tell: () => {} };

function cinePanel(item, choose) {
  const frames = framesOf(item);
  if (item.frame === undefined || frames.length < 2) cinema = { group: null, node: null, tell: () => {} };
  else if (cinema.group !== item.group) cinema = newCinema(item, frames, choose);
  cinema.tell(item);
  return cinema.node;
}

function newCinema(item, frames, choose) {
  const slider = range("Frame", 0, frames.length - 1, 1, 0, (k) => { stop(); choose(frames[k]); });
  slider.id = "frame";
  const button = el("button", { type: "button", id: "play", onclick: () => {
    if (playing) stop();
    else play(current, choose);
    button.textContent = playing ? "Stop" : "Play";
  } }, "Play");
  const where = el("output", {}), volume = el("span", { class: "volume" }), curve = el("div", {});
  const tell = (one) => {
    const place = frames.indexOf(one), time = one.time_ms === undefined ? "" : `, ${Math.round(one.time_ms)} ms`;
    if (Number(slider.value) !== place) slider.value = place;
    button.textContent = playing ? "Stop" : "Play";
    where.textContent = `Frame ${one.frame}${time}, ${place + 1} of ${frames.length}`;
    volume.textContent = one.cavity_ml === undefined ? "" : `cavity ${shown(one.cavity_ml)} ml${one.study && one.study.ef_percent !== undefined ? `, EF ${shown(one.study.ef_percent)} %` : ""}`;
    curve.replaceChildren(...[course(frames, place)].filter(Boolean));
  };
  return { group: item.group, node: el("div", { class: "cine" }, button, slider, where, curve, volume), tell };
}

function play(item, choose) {
  const frames = framesOf(item).filter((one) => one.status === "ok" && one.picture !== null);
  if (!frames.length) return;
  let k = frames.indexOf(item);
  const step = async () => {
    const before = playing;
    k = (k + 1) % frames.length;
    await choose(frames[k]);
    if (playing === before) playing = setTimeout(step, 90);
  };
  playing = setTimeout(step, 0);
}

function course(frames, place) {
  const volumes = frames.map((one) => one.cavity_ml), some = volumes.filter((volume) => volume !== undefined);
  if (some.length < 2) return null;
  const high = Math.max(...some), x = (k) => 4 + (k * 232) / (frames.length - 1), y = (v) => 44 - (40 * v) / high;
  const line = volumes.map((v, k) => (v === undefined ? null : `${x(k).toFixed(1)},${y(v).toFixed(1)}`)).filter(Boolean);
  return svg("svg", { viewBox: "0 0 240 48", class: "course", role: "img",
    "aria-label": `Cavity volume, ${shown(Math.min(...some))} to ${shown(high)} ml` },
  svg("path", { class: "axis", d: "M4 44H236" }), svg("polyline", { points: line.join(" ") }),
  volumes[place] === undefined ? null : svg("circle", { cx: x(place), cy: y(volumes[place]), r: 3 }));
}
