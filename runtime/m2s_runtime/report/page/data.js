// What the page holds: its cases, and their pictures, unpacked when they are looked at.
const report = JSON.parse(byId("data").textContent);
let place = 0;
for (const item of report.cases) item.picture = item.page === report.page ? place++ : null;

const unpacked = new Map(); // the latest last
const KEPT = 48;

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
    const stream = new Blob([bytesOf(block.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
    const picture = JSON.parse(await new Response(stream).text());
    if (picture.failed) return { reason: `The picture of this case could not be made (${picture.failed}).` };
    return { body: bodyOf(picture) };
  } catch (error) {
    return { reason: `The picture of this case cannot be read (${error.message}).` };
  }
}

const linkOf = (path) => path.split("/").map(encodeURIComponent).join("/");
const pageName = (number) => (number === 1 ? "report.html" : `report-${number}.html`);
