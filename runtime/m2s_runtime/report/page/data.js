// What the page holds: its cases, and their pictures, unpacked when they are looked at.
const report = JSON.parse(byId("data").textContent);
let place = 0;
for (const item of report.cases) item.picture = item.page === report.page ? place++ : null;

const unpacked = new Map(); // the latest last
const KEPT = 48;
const LONGEST = 2 ** 25; // letters of a picture: some hundred times the usual

async function pictureOf(item) {
  if (item.picture === null) return { reason: "The picture of this case is on another page of the report." };
  if (!unpacked.has(item.picture)) unpacked.set(item.picture, unpack(byId(`picture-${item.picture}`)));
  const found = unpacked.get(item.picture);
  unpacked.delete(item.picture);
  unpacked.set(item.picture, found);
  if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
  return found;
}

async function unpack(block) {
  try {
    if (block.type === "text/plain") return { reason: JSON.parse(block.textContent) };
    const picture = JSON.parse(await inflated(bytesOf(block.textContent)));
    if (picture.failed) return { reason: `The picture of this case could not be made (${picture.failed}).` };
    return { body: bodyOf(picture) };
  } catch (error) {
    return { reason: unreadable(error) };
  }
}

const unreadable = (error) => `The picture of this case cannot be read (${error.message}).`;

// Text from gzip; what swells beyond any picture of ours is given up before it fills the memory.
async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")).pipeThrough(new TextDecoderStream());
  const reader = stream.getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text;
    text += value;
    if (text.length > LONGEST) throw new Error("it is too large");
  }
}

const linkOf = (path) => path.split("/").map(encodeURIComponent).join("/");
const pageName = (number) => (number === 1 ? "report.html" : `report-${number}.html`);
