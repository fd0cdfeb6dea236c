"""The report in a browser: headless Chromium, where one is installed."""

import base64
import gzip
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from runtime.stub import StubOpener, save, wall
from scipy.spatial import cKDTree

from m2s_runtime import cli
from m2s_runtime.journal import Journal
from m2s_runtime.report.assets import PAGE
from m2s_runtime.report.pages import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright, the browser's driver, is not installed")

CHROMIUM = os.environ.get("M2S_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set M2S_CHROMIUM")

HOSTILE = '"><img src=x onerror=alert(1)>.nii.gz'
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox")
"""3-D without a graphics card; and as root, which CI is, Chromium has no sandbox."""

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""
SEEN = """() => {
    const canvas = document.querySelector("canvas"), copy = new OffscreenCanvas(canvas.width, canvas.height);
    const context = copy.getContext("2d");
    context.drawImage(canvas, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let sum = 0, colours = new Set();
    for (let k = 0; k < pixels.length; k += 4) {
        if (!pixels[k + 3]) continue;
        sum = (sum * 31 + pixels[k] * 65536 + pixels[k + 1] * 256 + pixels[k + 2]) % 2147483647;
        colours.add((pixels[k] >> 4) * 256 + (pixels[k + 1] >> 4) * 16 + (pixels[k + 2] >> 4));
    }
    return [colours.size, sum];
}"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A run with a bit of everything: a failure, a hostile name, a cine, a damaged picture, numbers made up."""
    root = tmp_path_factory.mktemp("report")
    save(root / "in" / HOSTILE, wall())
    save(root / "in" / "plain.nii.gz", wall(scale=0.9))
    for name in ("torn", "swollen", "words"):
        save(root / "in" / f"{name}.nii.gz", wall(scale=0.8))
    save(root / "in" / "cine.nii.gz", np.stack([wall(scale=s) for s in (1.0, 0.9, 0.8)], axis=-1))
    (root / "in" / "cut.nii.gz").write_bytes(b"\x1f\x8b cut short")
    with pytest.MonkeyPatch.context() as patch:
        from m2s_runtime import session

        patch.setattr(session, "open_reconstructor", StubOpener())
        assert cli.run(["--jobs", "0", "-q", str(root / "in"), "-o", str(root / "out")]) == 8
    _alter(root / "out")
    return root / "out"


def _alter(out):
    """A bull's eye and an impossible picture, on record like those that a run leaves."""
    journal = Journal(out, bundle="", options="")
    for case in ("plain", "torn", "swollen", "words"):
        record, picture = journal.find(case), out / case / f"{case}_report.json.gz"
        document = json.loads(gzip.decompress(picture.read_bytes()))
        segments = [*(8 + k / 4 for k in range(16)), None]
        document["measurements"] |= {
            "segments_mm": segments,
            "length_mm": None,
            "withheld": {"length_mm": "<b>why</b>"},
        }
        if case == "words":
            document["measurements"]["segments_mm"] = ["thick"] * 17
        data = gzip.compress(json.dumps(document).encode())
        data = {"torn": b"\x1f\x8bno gzip", "swollen": gzip.compress(bytes(2**26))}.get(case, data)
        row = replace(record.row, length_mm=None, expected_dice=0.873, spread_mean_mm=0.61, spread_p95_mm=1.234)
        journal.finish(row, {picture.name: data}, record.stamp["input"])
    write_report(out)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def window(browser, out):
    """The report, opened once from disk, with everything on record that it should not do."""
    page = browser.new_page(viewport={"width": 1200, "height": 520})
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(f"dialog {dialog.message}") or dialog.dismiss())
    page.on("request", lambda request: asked.append(request.url))
    page.route("http*://**", lambda route: route.abort())
    page.add_init_script(WATCH)
    page.goto((out / "report.html").as_uri())
    return SimpleNamespace(page=page, heard=heard, asked=asked, url=(out / "report.html").as_uri())


@pytest.fixture
def page(window):
    """The report as it opens, at its first case."""
    window.page.reload()
    window.page.wait_for_selector("#case h2")
    yield window.page
    assert window.heard == []
    assert set(window.asked) == {window.url}
    assert window.page.evaluate("window.violations") == []


def choose(page, case):
    page.get_by_role("button", name=case, exact=True).first.click()
    page.wait_for_function("name => document.querySelector('#case h2').textContent.startsWith(name)", arg=case)


def names(page):
    return page.locator(".cases tbody .case-name").all_inner_texts()


def test_all_of_a_case_is_there(page):
    assert page.locator("#case h2").inner_text().startswith("cut")  # failures first
    assert "There is no surface" not in page.locator("#case").inner_text()  # the refusal itself is told
    choose(page, "plain")
    page.wait_for_selector("canvas")
    assert page.evaluate(SEEN)[0] > 20
    assert page.locator(".cut svg").count() == 3
    for outline in page.locator("path.outline").all():
        assert len(outline.get_attribute("d")) > 500
    assert page.locator(".mask.corrected").count() == page.locator(".mask.acquired").count() == 3
    assert page.locator(".slices tbody tr").count() == 8
    assert page.locator(".bullseye .segment").count() == 17
    assert "withheld: <b>why</b>" in page.locator(".numbers").inner_text()
    assert "1 failed" in page.locator("#summary").inner_text()
    assert page.get_by_role("link", name="plain.ply").count() == 0  # its files were replaced: none is left to link to
    choose(page, "torn")
    assert "cannot be read" in page.locator("#reason").inner_text()
    choose(page, "swollen")
    assert "too large" in page.locator("#reason").inner_text()
    choose(page, "words")
    assert "cannot be read" in page.locator("#reason").inner_text()
    assert page.locator("canvas").count() == 0
    assert "Wall volume" in page.locator(".numbers").inner_text()


def test_outlines_cuts_and_distances_are_right(browser, out):
    picture = json.loads(gzip.decompress((out / "plain" / "plain_report.json.gz").read_bytes()))
    code = "".join((PAGE / f"{name}.js").read_text() for name in ("arrays", "bodies", "outlines", "sections"))
    blank = browser.new_page()
    found = blank.evaluate(
        f"""picture => {{ {code}
            const body = bodyOf(picture), slice = body.slices[2];
            return {{
                points: [...body.points], faces: [...body.faces], loops: body.slices.map((one) => one.loops),
                distance: [...distanceToSlices(body)], section: sectionOf(body, 0, 60.3, 1, 2).flat(),
                intervals: intervalsOf(slice, 1, 60) }};
        }}""",
        picture,
    )
    blank.close()
    points, loops = np.reshape(found["points"], (-1, 3)), found["loops"]
    mesh = trimesh.Trimesh(points, np.reshape(found["faces"], (-1, 3)), process=False)
    wanted = trimesh.intersections.mesh_plane(mesh, (1, 0, 0), (60.3, 0, 0))
    lengths = np.linalg.norm(np.diff(np.reshape(found["section"], (-1, 2, 2)), axis=1), axis=2)
    assert lengths.sum() == pytest.approx(np.linalg.norm(np.diff(wanted, axis=1), axis=2).sum(), rel=1e-3)
    for one, outlines in zip(picture["slices"], loops, strict=True):
        area = sum(abs(shoelace(np.reshape(loop, (-1, 2)))) * (1 if k == 0 else -1) for k, loop in enumerate(outlines))
        bits = np.unpackbits(np.frombuffer(base64.b64decode(one["mask"]), np.uint8))
        assert area == pytest.approx(bits.sum(), rel=0.03)
    third = picture["slices"][2]
    line = np.unpackbits(np.frombuffer(base64.b64decode(third["mask"]), np.uint8))[: np.prod(third["shape"])]
    line = line.reshape(third["shape"])[60 - third["corner"][0]]
    assert sum(b - a for a, b in found["intervals"]) == pytest.approx(line.sum())
    ends = [
        [*(np.reshape(loop, (-1, 2)) - one["shift_mm"]).T, np.full(len(loop) // 2, one["z_mm"])]
        for one, outlines in zip(picture["slices"], loops, strict=True)
        for loop in outlines
    ]
    distance, _ = cKDTree(np.concatenate([np.stack(three, axis=1) for three in ends])).query(points)
    assert np.abs(distance - found["distance"]).max() < 1e-3


def test_no_heart_is_shown_mirrored(browser):
    """Whatever the order and handedness of the grid, what is on the screen is the patient turned, base up."""
    random = np.random.default_rng(4)
    axes = [np.linalg.qr(random.normal(size=(3, 3)))[0] * [1, 1, side] for side in (1, -1) for _ in range(30)]
    blank = browser.new_page()
    code = (PAGE / "bodies.js").read_text()
    frames = blank.evaluate(f"axes => {{ {code} return axes.map(frameOf); }}", [one.tolist() for one in axes])
    blank.close()
    assert {round(np.linalg.det(one)) for one in axes} == {1, -1}
    for one, frame in zip(axes, frames, strict=True):
        rows = [frame[name] for name in ("right", "base", "up")]
        to_screen = np.array([row["sign"] * np.eye(3)[row["axis"]] for row in rows]) @ np.linalg.inv(one.T)
        assert np.linalg.det(to_screen) == pytest.approx(1.0)
        assert to_screen @ one[2] == pytest.approx([0, -1, 0], abs=1e-9)
        assert to_screen[2] @ [0, 1, 1] == pytest.approx(abs(one[:2] @ [0, 1, 1]).max())
        for row, direction in zip(rows, to_screen, strict=True):
            assert row["to"] == pytest.approx(direction)


def test_nothing_is_cut_off_on_a_common_screen(page):
    page.set_viewport_size({"width": 1440, "height": 900})
    choose(page, "plain")
    page.wait_for_selector("canvas")
    assert page.evaluate("(list => list.scrollWidth <= list.clientWidth)(document.querySelector('#list .scroll'))")
    pane = page.locator("#case").bounding_box()
    for part in (".controls", "canvas", ".scale", ".cut >> nth=2"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= pane["y"] + pane["height"], part
        assert box["x"] + box["width"] <= pane["x"] + pane["width"], part
    page.set_viewport_size({"width": 1200, "height": 520})


def shoelace(loop):
    x, y = loop.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def test_a_hostile_name_is_text(page):
    row = page.locator(".cases tr", has_text="img")
    row.locator("button").click()
    page.wait_for_selector("canvas")
    assert HOSTILE in page.locator("#case .origin").inner_text()
    assert page.locator("img").count() == 0


def test_colours_and_slices_can_be_chosen(page):
    choose(page, "plain")
    page.wait_for_selector("canvas")
    pictures = [page.evaluate(SEEN)[1]]
    page.get_by_label("Colour", exact=True).select_option("distance_mm")
    pictures.append(page.evaluate(SEEN)[1])
    assert "distance" in page.locator(".bar").get_attribute("aria-label")
    page.get_by_label("Slices", exact=True).select_option("none")
    pictures.append(page.evaluate(SEEN)[1])
    assert page.locator(".mask").count() == 0
    page.get_by_label("see through").check()
    pictures.append(page.evaluate(SEEN)[1])
    assert len(set(pictures)) == 4
    short = page.locator("path.outline").first
    before = short.get_attribute("d")
    page.get_by_label("Slice, base to apex").fill("6")
    assert short.get_attribute("d") != before
    assert page.locator(".slices tr.current button").inner_text() == "7"


def test_the_table_sorts_and_filters(page):
    everything = names(page)
    assert everything[0] == "cut"
    page.get_by_role("button", name="Wall, ml").click()
    column = page.locator(".cases thead th").all_inner_texts().index("Wall, ml ▴")
    cells = [row.locator("th, td").nth(column).inner_text() for row in page.locator(".cases tbody tr").all()]
    known = [float(cell) for cell in cells if cell]
    assert known == sorted(known)
    assert cells[-1] == ""  # what has none stays last
    assert page.locator("th[aria-sort=ascending]").count() == 1
    page.keyboard.press("Enter")  # the header keeps the focus
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.keyboard.press("Enter")
    assert names(page) == everything
    page.locator("#find").fill("cine t01")
    assert names(page) == ["cine_t01"]
    assert page.locator(".count").inner_text() == f"1 of {len(everything)} cases"
    page.locator("#find").fill("")
    page.get_by_label("State", exact=True).select_option("failed")
    assert names(page) == ["cut"]


@pytest.mark.parametrize("width", [1150, 1440])
def test_the_table_has_room_for_all_of_its_columns(page, width):
    before = page.viewport_size
    page.set_viewport_size({"width": width, "height": 900})
    assert len(page.locator(".cases thead th").all()) == 8
    wide, shown = page.locator("#list .scroll").evaluate("(box) => [box.scrollWidth, box.clientWidth]")
    page.set_viewport_size(before)
    assert wide <= shown


def test_it_can_be_worked_by_keys_alone(page):
    page.locator("body").press("n")
    page.wait_for_function("() => !document.querySelector('#case h2').textContent.startsWith('cut')")
    assert page.locator(".steps span").inner_text().startswith("2 of")
    page.keyboard.press("p")
    page.wait_for_function("() => document.querySelector('#case h2').textContent.startsWith('cut')")
    page.keyboard.press("/")
    page.keyboard.type("plain")
    assert names(page) == ["plain"]
    page.keyboard.press("Tab")
    for _ in range(20):
        if page.evaluate("document.activeElement.classList.contains('case-name')"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("canvas")
    page.locator("canvas").focus()
    before = page.evaluate(SEEN)[1]
    page.keyboard.press("ArrowLeft")
    turned = page.evaluate(SEEN)[1]
    page.keyboard.press("+")
    nearer = page.evaluate(SEEN)[1]
    page.keyboard.press("Home")
    assert page.evaluate(SEEN)[1] == before
    assert len({before, turned, nearer}) == 3


def test_the_slider_leads_through_a_cine(page):
    choose(page, "cine_t00")
    page.wait_for_selector("canvas")
    first = page.evaluate(SEEN)[1]
    page.locator("#frame").fill("2")
    page.wait_for_function("() => document.querySelector('#case h2').textContent.startsWith('cine_t02')")
    assert page.evaluate(SEEN)[1] != first
    assert "3 of 3" in page.locator(".cine output").inner_text()
    assert "Ejection fraction" in page.locator(".study").inner_text()
    assert page.evaluate("document.activeElement.id") == "frame"
    page.locator("#play").click()
    page.wait_for_function("() => document.querySelector('#case h2').textContent.startsWith('cine_t01')")
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"


def test_dark_narrow_and_on_paper(page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    choose(page, "plain")
    light = paper()
    page.emulate_media(color_scheme="dark")
    assert paper() != light
    page.set_viewport_size({"width": 420, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.emulate_media(media="print")
    assert paper() == "rgb(255, 255, 255)"
    assert page.locator("#find").is_hidden()
    assert page.locator("canvas").is_visible()
    assert page.evaluate(SEEN)[0] > 20
    page.emulate_media(media="screen", color_scheme="light")
    page.set_viewport_size({"width": 1200, "height": 520})
