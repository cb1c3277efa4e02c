"""`report --html`: one file with everything in it, which says the same as the Markdown; figures in
the sizes and formats of papers.
"""

import csv
import json
import re
import sys

import pytest
from matplotlib.image import imread
from PIL import Image
from result_fixtures import learning_curve, write_run

from analysis import findings, html, plots, report
from analysis.bootstrap import Method
from analysis.document import Figure, Film, Section, Table, markdown
from utils.errors import MissingPackage, UserError

ODD = "<b>&`odd`"  # a name that must not become markup
FAST = findings.Options(method=Method(resamples=200), over_maps=True)


def make_runs(root):
    """Two algorithms, two maps, three seeds, one film; an evaluation of a checkpoint."""
    for name, final in (("qmix", 0.9), (ODD, 0.5)):
        for i, task in enumerate(("3m", "8m")):
            for seed in range(3):
                folder = root / ("odd" if name == ODD else name) / task / str(seed)
                lines = learning_curve(12, final, 10 * seed + i)
                config = {"name": name, "seed": seed, "lr": 0.1, "env_args": {"map_name": task}}
                write_run(folder, lines, config, timing=[(11_000, "seconds", 22.0)])
    frames = [Image.new("RGB", (32, 24), (40 * k, 0, 0)) for k in range(3)]
    film = root / "qmix" / "3m" / "1" / "evaluation.gif"
    frames[0].save(film, save_all=True, append_images=frames[1:])
    config = {"name": "qmix", "seed": 1, "evaluate": True, "checkpoint_path": "x"}
    write_run(root / "qmix" / "3m" / "9", [(11_000, "test_return_mean", 999.0)], config)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a report with its page."""
    place = tmp_path_factory.mktemp("page")
    report.write_report([make_runs(place / "runs")], place / "out", options=FAST, with_html=True)
    return place / "out"


# --- What the page says ---


def cells(text):
    """All table rows of a page or of a Markdown file as tuples of texts."""
    if not text.startswith("<!doctype"):
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        lines = [line for line in lines if "| --- |" not in line]
        return {tuple(cell.replace("`", "") for cell in line[2:-2].split(" | ")) for line in lines}
    found = set()
    for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL):
        parts = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        plain = [re.sub(r"</?code>", "", part) for part in parts]
        assert not any("<" in part for part in plain)
        found.add(tuple(map(unescaped, plain)))
    return found


def unescaped(text):
    for name, letter in (("&lt;", "<"), ("&gt;", ">"), ("&#39;", "'"), ("&amp;", "&")):
        text = text.replace(name, letter)
    return text.replace("`", "")


def test_page_and_markdown_have_the_same_tables(made):
    page, text = (made / "report.html").read_text(), (made / "report.md").read_text()
    assert cells(page) == cells(text)
    assert len(cells(page)) > 50
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert "Probability of improvement" in headings
    shown = re.findall(r"<h\d>(.*?)</h\d>", page)
    assert [re.sub(r"</?code>", "`", one) for one in shown] == headings


def test_statistics_of_the_csv_stand_in_the_tables(made):
    with (made / "statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = {row["statistic"] for row in rows}
    assert kinds == {
        *("iqm", "median", "mean", "optimality_gap", "profile", "probability_of_improvement"),
        *("mean_rank", "rank", "steps_to", "runs_that_reach"),
    }
    text = (made / "report.md").read_text()
    for row in rows:
        if row["metric"] == "test_battle_won_mean" and row["statistic"] in ("iqm", "median"):
            low, value, high = (f"{100 * float(row[key]):.1f}" for key in ("low", "value", "high"))
            assert f"| {value} | {low} to {high} |" in text
        if row["statistic"] == "mean_rank":
            assert f"| {float(row['value']):.4g} |" in text
    won = [row for row in rows if row["statistic"] == "steps_to" and row["value"] != "inf"]
    assert won
    for row in won:
        assert f"| {float(row['value']):,.0f} |" in text


def test_an_evaluation_is_no_training_run(made):
    text = (made / "report.md").read_text()
    assert "12 runs, grouped by `name`." in text
    assert "1 of 13 runs evaluate a checkpoint" in text
    assert "999" not in text


def test_the_page_holds_everything(made):
    page = (made / "report.html").read_text()
    written = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", written)
    assert "url(" not in written
    assert page.count("data:image/gif;base64,") == 1
    assert "qmix on 3m, seed 1" in page
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL).group(1))
    assert page.count('class="plot"') == len(figures)
    # Two metrics: curves of two maps and of both, four aggregates, profiles, improvement, ranks.
    assert len(figures) == 2 * (3 + 4 + 3)
    assert "<b>" not in written


def test_equal_runs_give_equal_pages(made, tmp_path):
    report.write_report([made.parent / "runs"], tmp_path, options=FAST, with_html=True)
    for name in ("report.html", "report.md", "statistics.csv"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes(), name


def test_without_plotly_one_line_says_what_is_missing(made, tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "plotly":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    words = [str(made.parent / "runs"), "--out", str(tmp_path / "out"), "--html"]
    with pytest.raises(MissingPackage, match=r"plotly: pip install -r requirements-dashboard\.txt"):
        report.main(words)
    assert not (tmp_path / "out").exists()


def test_films_that_are_too_large_stay_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "_FILMS", 10)
    for name, size in (("small.gif", 6), ("large.mp4", 5), ("other.mp4", 4)):
        (tmp_path / name).write_bytes(b"x" * size)
    films = [Film(name, tmp_path / name) for name in ("small.gif", "large.mp4", "other.mp4")]
    page = html.page(Section("Report", [], [Section("Films", films)]), "")
    assert page.count("data:image/gif") == page.count("data:video/mp4") == 1
    assert f"large.mp4: the film is too large for this page, see <code>{tmp_path}" in page


def test_markdown_of_a_document(tmp_path):
    table = Table(["a", "b"], [["1", "x | y"]], folded="Long")
    figure = Figure("Curves", [tmp_path / "c.pdf", tmp_path / "c.png"])
    film = Film("A film", tmp_path / "f.gif")
    text = markdown(Section("T", ["one", ["p", "q"]], [Section("U", [table, figure, film])]))
    table = "| a | b |\n| --- | --- |\n| 1 | x \\| y |"
    parts = ["# T", "one", "- p\n- q", "## U", "Long:", table]
    parts += ["![Curves](c.png)", "[PDF](c.pdf)", f"[A film]({tmp_path}/f.gif)\n\n"]
    assert text == "\n\n".join(parts)


# --- Figures for papers ---


@pytest.mark.parametrize(("size", "inches"), [("column", 3.3), ("text", 6.75), ("slide", 12.0)])
def test_figures_have_the_width_asked_for(made, tmp_path, size, inches):
    words = [str(made.parent / "runs"), "--out", str(tmp_path), "--format", "pdf,svg,png"]
    words += ["--metric", "test_battle_won_mean", "--size", size, "--resamples", "50"]
    assert report.main(words) == 0
    kinds = ("aggregates", "curves", "improvement", "profiles", "ranks")
    for kind in kinds:
        stem = tmp_path / f"{kind}_test_battle_won_mean"
        pdf = stem.with_suffix(".pdf").read_bytes()
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", pdf)
        assert float(box[1]) == pytest.approx(72 * inches, abs=0.1), kind
        assert pdf.count(b"/FontFile2") >= 1  # TrueType, embedded
        assert b"/Type3" not in pdf
        svg = stem.with_suffix(".svg").read_text()
        assert re.search(rf'width="{72 * inches:g}pt"', svg), kind
        assert "<text" not in svg  # outlines need no fonts
        dpi = 300 if size == "column" else 150
        assert imread(stem.with_suffix(".png")).shape[1] == pytest.approx(dpi * inches, abs=1)
    assert not (tmp_path / "report.html").exists()


def test_nothing_in_a_narrow_figure_overlaps(made):
    found = findings.find(
        report.group_runs(report.load_runs([made.parent / "runs"])), "test_return_mean", FAST
    )
    for name in ("column", "text", "slide"):
        figures = report._figures(found, FAST.method, report.Style(size=name))
        for kind, figure in figures.items():
            figure.draw_without_rendering()
            width, height = figure.bbox.size
            boxes = [ax.get_tightbbox() for ax in figure.axes if ax.axison]
            boxes += [legend.get_window_extent() for legend in figure.legends]
            for i, a in enumerate(boxes):
                assert a.x0 >= -1, (name, kind)
                assert a.y0 >= -1, (name, kind)
                assert a.x1 <= width + 1, (name, kind)
                assert a.y1 <= height + 1, (name, kind)
                for b in boxes[i + 1 :]:
                    apart = a.x1 - 1 <= b.x0 or b.x1 - 1 <= a.x0
                    assert apart or a.y1 - 1 <= b.y0 or b.y1 - 1 <= a.y0, (name, kind)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "gif"], "no figure format 'gif'; known: png, pdf, svg"),
        (["--format", ","], "--format is empty"),
        (["--size", "poster"], "invalid choice: 'poster'"),
        (["--levels", "half"], "--levels takes numbers in percent, not 'half'"),
        (["--levels", "50,120"], "a level lies above 0 and up to 100 percent, not 120"),
        (["--levels", "0"], "not 0"),
    ],
)
def test_wrong_options_are_one_line(made, tmp_path, words, message):
    with pytest.raises(UserError) as error:
        report.main([str(made.parent / "runs"), "--out", str(tmp_path / "out"), *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_sizes_of_letters():
    assert plots.SIZES["column"].columns(3) == 1
    assert plots.SIZES["column"].columns(5) == 2
    assert plots.SIZES["screen"].columns(4) == 2


# --- In a browser (`visit` fails on errors of the console and on requests to any server) ---


def drawn(page):
    """Draws everything and returns how many figures there are."""
    page.wait_for_selector(".plot .main-svg")
    return page.evaluate(
        """async () => {
            const plots = [...document.querySelectorAll(".plot")];
            for (const plot of plots) {
                plot.scrollIntoView();
                while (!plot.querySelector(".main-svg")) await new Promise(requestAnimationFrame);
            }
            scrollTo(0, 0);
            return plots.length;
        }"""
    )


def test_the_page_opens_without_errors_and_without_a_network(made, visit):
    page = visit((made / "report.html").as_uri())
    assert drawn(page) == 20
    names = page.evaluate(
        "[...new Set(document.querySelector('.plot').data.map((one) => one.legendgroup))].sort()"
    )
    assert names == [ODD, "qmix"]

    # A click on a group hides it in all figures, another one shows it again.
    chip = page.locator(".group", has_text="qmix").first
    shown = "[...document.querySelectorAll('.plot')].flatMap((plot) => plot.data)"
    shown += ".filter((one) => one.legendgroup === 'qmix').map((one) => one.visible)"
    assert all(page.evaluate(shown))
    chip.click()
    assert not any(page.evaluate(shown))
    assert page.locator(".group[aria-pressed=false]").count() == 4
    chip.click()
    assert all(page.evaluate(shown))

    # A click on a head sorts: numbers by size, then the other way round.
    table = page.locator("table").first
    column = table.locator("th", has_text="Mean")
    place = column.evaluate("(head) => head.cellIndex") + 1

    def values():
        return [float(x) for x in table.locator(f"td:nth-child({place})").all_inner_texts()]

    before = values()
    column.click()
    assert values() == sorted(before)
    column.click()
    assert values() == sorted(before, reverse=True)
    film = page.locator(".film img")
    assert film.evaluate("(image) => image.naturalWidth") == 32


def test_dark_light_and_paper(made, visit):
    page = visit((made / "report.html").as_uri(), color_scheme="dark")
    drawn(page)
    look = """[
        getComputedStyle(document.body).backgroundColor,
        document.querySelector(".plot").layout.font.color,
        document.querySelector(".group line").getAttribute("stroke"),
        document.querySelector(".plot").layout.width,
    ]"""
    dark = page.evaluate(look)
    assert dark[:2] == ["rgb(22, 27, 34)", "#e4e7eb"]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    paper = page.evaluate(look)
    assert paper[0] == "rgb(255, 255, 255)"
    assert paper[1] == "#1f2933"
    assert paper[3] == 334
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(look)[:3] == dark[:3]
    page.locator("#theme-button").click()
    assert page.evaluate(look)[:3] == paper[:3]
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert 3 < len(re.findall(rb"/Type\s*/Page\b", pdf)) < 20


def test_a_phone_s_width(made, visit):
    page = visit(
        (made / "report.html").as_uri(), viewport={"width": 390, "height": 844}, has_touch=True
    )
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('main p, .plot, .legend, h2, figure')]"
        ".filter((one) => one.getBoundingClientRect().right > 390.5).length"
    )
    assert wide == 0
