import io
import os
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from limbeck.evaluation.comparison import break_even_table
from limbeck.evaluation.report import load_report, terminal_table, write_report
from limbeck.model.errors import UserError

FILES = ("report.json", "report.md", "report.html")
HOSTILE = "<script>alert(1)</script>"


def score(value, low=None, high=None, n=400):
    low, high = max(value - 0.03, 0.0) if low is None else low, min(value + 0.03, 1.0) if high is None else high
    return {"value": value, "ci95": [low, high], "n": n}


def row(method, accuracy, seconds=0.0, latency=6.0, params=2_400_000):
    return {
        "method": method,
        "metrics": {"accuracy": score(accuracy), "macro_f1": score(accuracy / 2), "matthews": score(accuracy / 3)},
        "params_total": params,
        "params_trainable": 0,
        "bytes": 4 * params,
        "train_seconds": seconds,
        "optimizer_bytes": 0,
        "flops_per_step": 0,
        "prompt_tokens": 5,
        "latency_ms_p50": latency,
        "joules_per_prediction": None,
    }


@pytest.fixture
def data():
    rows = [
        row("few_shot", 0.8, latency=9.0),
        row("full", 0.95, seconds=40.0),
        row("distilled", 0.93, seconds=80.0, latency=2.0, params=600_000),
    ]
    claims = [
        {"name": "tuned_beats_base", "statement": "It does.", "holds": True, "evidence": {"full": 0.95}},
        {"name": "distilled_is_faster", "statement": "2x.", "holds": False, "evidence": {"speedup": 1.8127}},
    ]
    return {
        "title": "A lesson",
        "command": "limbeck run experiments/configs/quickstart.py",
        "seed": 0,
        "seconds": 381.0,
        "machine": {"cores": 2},
        "versions": {"jax": "0.10.2"},
        "task": {"name": "world", "train": 800, "test": 400, "example_prompt": "plum: drupe\nlemon:"},
        "rows": rows,
        "claims": claims,
        "curves": {"pretrain": [[0, 5.0], [10, 2.0]], "full": [[0, 2.0], [10, 0.1]]},
        "ambiguity": {"zero_shot": [["technology", 0.4], ["pome", 0.2]], "few_shot_fruit": [["pome", 0.9]]},
        "bias": [
            {"model": model, "probe": "names", "value": 0.9, "ci95": [0.8, 1.0], "n": 50, "ideal": 1.0}
            for model in ("base", "tuned", "distilled")
        ],
        "offline": {"rows": 9, "coverage": 1.0, "lookup_us_p50": 8.0, "online_ms_p50": 6.0, "speedup": 750.0},
        "break_even": break_even_table(rows),
        "samples": [{"input": "گیلاس", "answer": "شفت", "few_shot": "سته", "full": "شفت"}],
    }


@pytest.fixture
def regression():
    """What tuning one model for a regression leaves: no claims, no break-even, no offline part, no ambiguity."""

    def measured(method, pearson, mse, **cost):
        return {"method": method, "metrics": {"pearson": pearson, "spearman": pearson, "mse": mse}, **cost}

    return {
        "title": "Tuned",
        "metric": "pearson",
        "facts": [["parameters", "1.2 M"], ["واحدها", "۱۲"]],
        "rows": [
            measured("tuned", score(-0.12, -0.2, -0.05), score(1.95, 1.8, 2.1), params_total=9, latency_ms_p50=2),
            measured("tfidf_ridge", score(0.77, 0.74, 0.79), score(0.963, 0.9, 1.0), params_total=3, latency_ms_p50=1),
        ],
        "curves": {"tune": [[0, 2.0], [10, 1.0]]},
        "evaluations": {"tune": [{"step": 10, "score": 0.4, "validation_loss": 1.1, "validation_pearson": 0.4}]},
        "samples": [{"input": "یک\nدو", "answer": "5", "tuned": "4.3"}],
        "texts": [{"prompt": "یکی بود", "text": " یکی نبود.\nOnce"}],
        "skipped": [f"آموزش.jsonl, row {i}" for i in range(23)],
    }


@pytest.fixture
def prompted(data):
    """The rows of a comparison, of which one prompt has all that a prompt can have."""
    variants = [
        {"changes": {}, **score(0.8)},
        {"changes": {"separator": "\n\n", "order": "shuffled"}, **score(0.7123)},
        {"changes": {"instruction": HOSTILE}, "error": f"no room {HOSTILE}"},
    ]
    data["rows"][0] |= {
        "prompt": {"shots": 2, "examples": ["میوه/1", HOSTILE], "seed": 3}, "variants": variants,
        "views": {"per_token": score(0.61), "sum": score(0.8), "pmi": score(0.59)},
        "by_samples": [{"samples": n, **score(0.6 + n / 100)} for n in (1, 2, 3)],
    }  # fmt: skip
    data["rows"][1]["prompt"] = {"seed": 0}
    data["rows"].append({**row("ensemble", 0.9), "prompt": {"members": ["few_shot", "zero_shot"]}})
    return data


def read(folder):
    return {name: (folder / name).read_text(encoding="utf-8") for name in FILES}


def test_what_is_written_is_read_again(tmp_path, data):
    write_report(tmp_path, data)
    assert load_report(tmp_path) == data
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "quality.svg"])
    assert "(quality.svg)" in read(tmp_path)["report.md"]
    assert "گیلاس" in read(tmp_path)["report.json"]


def test_equal_data_gives_equal_bytes_in_whatever_order(tmp_path, data):
    write_report(tmp_path / "a", data)
    again = load_report(tmp_path / "a")
    again["curves"] = dict(reversed(again["curves"].items()))
    write_report(tmp_path / "b", dict(reversed(again.items())))
    assert read(tmp_path / "a") == read(tmp_path / "b")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_its_place_and_nothing_is_written(tmp_path, data, bad):
    data["curves"]["full"][1][1] = bad
    with pytest.raises(UserError, match=r"report\.curves\.full\.1\.1 is (nan|inf)"):
        write_report(tmp_path, data)
    assert not os.listdir(tmp_path)


def test_hostile_text_stays_text(tmp_path, data):
    data["title"] = data["command"] = data["task"]["example_prompt"] = HOSTILE
    data["task"]["name"] = data["rows"][0]["method"] = data["machine"]["cores"] = HOSTILE
    data["samples"][0] |= {"input": HOSTILE + "|a\n# b", "answer": HOSTILE, HOSTILE: HOSTILE}
    data["claims"][1] |= {"name": HOSTILE, "statement": HOSTILE, "evidence": {HOSTILE: HOSTILE}}
    data["ambiguity"]["zero_shot"][0][0] = data["bias"][0]["probe"] = data["bias"][0]["model"] = HOSTILE
    data["curves"][HOSTILE] = [[0, 1.0]]
    data["texts"] = [{"prompt": HOSTILE, "text": HOSTILE}]
    data["facts"], data["skipped"] = [[HOSTILE, HOSTILE]], [HOSTILE]
    data["rows"][0]["metrics"][HOSTILE] = data["rows"][0]["metrics"]["accuracy"]
    data["evaluations"] = {HOSTILE: [{"step": 1, "accuracy": 0.5}]}
    data["break_even"][0]["from"] = '"><img src=x onerror=alert(1)>'
    write_report(tmp_path, data)
    html, markdown = read(tmp_path)["report.html"], read(tmp_path)["report.md"]
    assert "<script" not in html and "<img" not in html
    assert html.count("&lt;script") > 18
    assert not re.search(r"(?<!\\)<", markdown)
    assert "\n# b" not in markdown and r"\|a \# b" in markdown


def test_a_failed_claim_is_seen_with_its_evidence(tmp_path, data):
    data = {"claims": data["claims"]}
    write_report(tmp_path, data)
    html, markdown = read(tmp_path)["report.html"], read(tmp_path)["report.md"]
    red = re.findall(r'<tr class="bad">.*?</tr>', html, flags=re.DOTALL)
    assert len(red) == 1
    assert "distilled_is_faster" in red[0] and "1.813" in red[0] and "<details open>" in red[0]
    line = next(line for line in markdown.splitlines() if line.startswith("| **FAILS**"))
    assert "distilled_is_faster" in line and "1.813" in line
    for text in (html, markdown):
        assert "1 of 2 claims FAIL: distilled_is_faster" in text
    data["claims"][1]["holds"] = True
    write_report(tmp_path, data)
    assert 'class="bad"' not in read(tmp_path)["report.html"]
    assert "FAIL" not in "".join(read(tmp_path).values())


BLOCKS = {
    "rows": "Methods side by side",
    "claims": "Claims",
    "break_even": "When the dearer start pays",
    "ambiguity": "What a prompt without examples can mean",
    "bias": "Bias",
    "offline": "Predicted ahead of time",
    "samples": "Samples",
    "texts": "Texts it writes",
    "skipped": "Left out",
    "versions": "How this was made",
}


def sections(folder, title):
    """The section in HTML and in Markdown."""
    written = read(folder)
    yield written["report.html"].split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    yield written["report.md"].split(f"## {title}\n")[1].split("\n## ")[0]


NULLS = dict.fromkeys([*BLOCKS, "curves", "evaluations", "facts", "task", "seconds", "seed", "title", "metric"])


def test_what_is_null_reads_not_measured_in_its_section(tmp_path):
    write_report(tmp_path, NULLS)
    assert load_report(tmp_path) == NULLS
    for title in BLOCKS.values():
        for section in sections(tmp_path, title):
            assert "not measured" in section, title
    assert "not measured" in read(tmp_path)["report.html"].split("<h2>Training</h2>")[1].split("</section>")[0]
    assert show(NULLS).count("not measured") == 2  # methods and claims


def test_a_run_of_another_kind_has_no_section_for_what_it_does_not_measure(tmp_path, regression):
    write_report(tmp_path, {})
    write_report(tmp_path / "regression", regression)
    for folder, absent in ((tmp_path, set(BLOCKS)), (tmp_path / "regression", {*BLOCKS} - {*regression})):
        written = read(folder)
        for key in absent:
            assert BLOCKS[key] not in written["report.html"] + written["report.md"], key
        for name in ("report.html", "report.md"):
            body = written[name].split("</style>")[-1]
            assert "not measured" not in body and "claims" not in body
    assert "claims" not in show(regression) and "not measured" not in show({})


def test_what_is_measured_does_not_read_not_measured(tmp_path, data):
    data["rows"] = [row | {"joules_per_prediction": 0.01} for row in data["rows"]]
    flops = {"train_flops": 1, "flops_per_request": 1}
    data["break_even"] = break_even_table([row | flops for row in data["rows"]])
    data["bias"] = [row | {"perplexity": 4.0} for row in data["bias"]]
    data["offline"]["same_answers"] = True
    data |= {"texts": [{"prompt": "a", "text": "b"}], "skipped": []}
    write_report(tmp_path, data)
    for title in BLOCKS.values():
        for section in sections(tmp_path, title):
            assert "not measured" not in section, title


def test_ways_of_tuning_are_set_against_what_trains_and_baselines_are_not(tmp_path):
    def row(method, value, trainable, **more):
        return {"method": method, "metrics": {"accuracy": {"value": value}}, "params_trainable": trainable, **more}

    ways = [row(f"way{i}", 0.5 + i / 10, 10.0**i, adapter_bytes=4, step_bytes=8, step_seconds=0.1) for i in (1, 2, 3)]
    write_report(tmp_path, {"rows": [*ways, row("counted_words", 0.9, 99)]})
    page = (tmp_path / "report.html").read_text()
    figures = [text for text in page.split("<svg ") if "parameters that train" in text]
    assert len(figures) == 1
    assert all(f"way{i}" in figures[0].partition("</svg>")[0] for i in (1, 2, 3))
    assert "counted_words" not in figures[0].partition("</svg>")[0]
    write_report(tmp_path, {"rows": [row("counted_words", 0.9, 99), row("full", 0.8, 999)]})
    assert "parameters that train" not in (tmp_path / "report.html").read_text()


class Reader(HTMLParser):
    """Collects what a browser would fetch or run, and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.directions = [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "img", "path", "use"):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe", "object"):
            self.references.append(tag)
        for name, value in attrs:
            self.directions += (name, value) == ("dir", "auto")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.references.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


def test_the_page_stands_alone(tmp_path, data):
    write_report(tmp_path, data)
    html = read(tmp_path)["report.html"]
    reader = Reader()
    reader.feed(html)
    assert reader.open == [] and reader.references == []
    assert reader.directions >= 4
    assert html.count("<svg") == 6  # quality twice, break-even in seconds, ambiguity, bias, loss
    assert not re.search(r"http|@import|url\((?!#)", html)
    assert "گیلاس" in html and "prefers-color-scheme: dark" in html and "@media print" in html


def test_half_measured_blocks_are_shown(tmp_path):
    half = {
        "title": "پیامک‌ها",
        "rows": [{"method": "tfidf", "metrics": {"accuracy": {"value": 0.97}, "macro_f1": None}}, {"method": "full"}],
        "claims": [{"name": "a", "statement": "b", "holds": False}],
        "curves": {"full": [[0, 0.0]], "lora": []},
        "ambiguity": {"zero_shot": []},
        "bias": [{"model": "base", "probe": "p", "value": 0.5}],
        "offline": {"rows": 3},
        "evaluations": {"full": [], "lora": [{"step": 1}]},
        "samples": [{"input": "a", "answer": "b", "full": None}, {"input": "c", "answer": "d", "lora": ""}],
        "task": {"name": "mine"},
    }
    write_report(tmp_path, half)
    assert "0.97" in show(half) and "0.500" in read(tmp_path)["report.html"]
    assert 'class="wrong"' in read(tmp_path)["report.html"].split("<td dir=\"auto\">d</td>")[1]
    assert 'class="wrong"' not in read(tmp_path)["report.html"].split("<td dir=\"auto\">d</td>")[0]
    assert "None" not in read(tmp_path)["report.html"] + read(tmp_path)["report.md"]


def cells(folder, method):
    """The texts of the cells of a method's row in the table of methods."""
    table = read(folder)["report.html"].split("<tbody>")[1].split("</tbody>")[0]
    line = next(line for line in table.split("<tr>") if f">{method}<" in line)
    return [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in line.split("<td")[1:]]


def test_the_main_metric_leads_and_the_others_are_columns_with_intervals(tmp_path, regression):
    write_report(tmp_path, regression)
    main, spearman, mse, *_ = cells(tmp_path, "tfidf_ridge")
    assert "0.77 [0.74, 0.79]" in main and "0.77 [0.74, 0.79]" in spearman and "0.963 [0.900, 1.000]" in mse
    markdown = read(tmp_path)["report.md"]
    assert "| method | Pearson | Spearman | squared error ↓ | n | parameters | latency |" in markdown
    assert r"| tuned | -0.12 \[-0.20, -0.05\] | -0.12 \[-0.20, -0.05\] | 1.950 \[1.800, 2.100\] | 400 |" in markdown
    assert "lower is better" in markdown and "lower is better" in read(tmp_path)["report.html"]
    text = show(regression)
    assert "Pearson" in text and "-0.12 [-0.20, -0.05]" in text and "1.2 M" in text


def test_metrics_that_find_no_room_get_a_table_of_their_own_and_stand_once(tmp_path, data):
    write_report(tmp_path, data)
    for name in ("report.html", "report.md"):
        assert read(tmp_path)[name].count("macro F1") == read(tmp_path)[name].count("Matthews") == 1
    first, second = (part.splitlines()[0] for part in read(tmp_path)["report.md"].split("| method |")[1:])
    assert "accuracy" in first and "macro F1" not in first
    assert second == " macro F1 | Matthews |"


@pytest.mark.parametrize(
    ("metric", "scores", "places"),
    [
        ("accuracy", [score(0.5, 0.4, 0.6), score(0.9)], {"left:40.0%", "right:40.0%", "left:50.0%"}),
        ("pearson", [score(-0.5, -0.75, 0.0), score(0.5)], {"left:12.5%", "right:50.0%", "left:25.0%", "left:50.0%"}),
        ("mse", [score(2.0, 1.0, 3.0), score(4.0, 4.0, 5.0)], {"left:20.0%", "right:40.0%", "left:40.0%"}),
        ("log_likelihood", [score(-2.0, -3.0, -1.0), score(-4.0, -4.0, -4.0)], {"left:25.0%", "right:25.0%"}),
        ("bleu", [score(25.0, 20.0, 30.0)], {"left:20.0%", "right:70.0%", "left:25.0%"}),
    ],
)
def test_the_bar_of_an_interval_is_on_the_metric_s_scale(tmp_path, metric, scores, places):
    rows = [{"method": f"m{i}", "metrics": {metric: entry}} for i, entry in enumerate(scores)]
    write_report(tmp_path, {"metric": metric, "rows": rows})
    bar = read(tmp_path)["report.html"].split('<div class="range">')[1].split("</div>")[0]
    assert places <= set(re.findall(r"(?:left|right):[\d.]+%", bar))
    assert ("<s " in bar) == (metric == "pearson")


def test_no_interval_is_promised_where_none_was_measured(tmp_path):
    rows = [{"method": "xz", "metrics": {"bits_per_byte": {"value": 2.51584, "ci95": None, "n": None}}}]
    write_report(tmp_path, {"metric": "bits_per_byte", "rows": rows})
    html = read(tmp_path)["report.html"]
    assert "bits per byte ↓<" in html and "2.516" in html and "95% interval" not in html and "<i " not in html


def test_a_number_near_the_answer_is_not_marked_wrong(tmp_path, regression, data):
    write_report(tmp_path, regression)
    assert 'class="wrong"' not in read(tmp_path)["report.html"]
    write_report(tmp_path, data)
    assert read(tmp_path)["report.html"].count('class="wrong"') == 1


def test_texts_and_what_was_left_out_in_any_script(tmp_path, regression):
    write_report(tmp_path, regression)
    html, markdown = read(tmp_path)["report.html"], read(tmp_path)["report.md"]
    assert '<p class="text" dir="auto"><b>یکی بود</b> یکی نبود.\nOnce</p>' in html
    assert "| یکی بود | یکی نبود. Once |" in markdown
    for text in (html, markdown):
        assert "23 in all, the first 20 of them" in text
        assert "آموزش.jsonl, row 19" in text and "آموزش.jsonl, row 20" not in text
    regression["skipped"] = []
    write_report(tmp_path, regression)
    assert "Nothing was left out." in read(tmp_path)["report.html"]


def test_facts_stand_at_the_top_in_their_order(tmp_path, regression):
    write_report(tmp_path, regression)
    header = read(tmp_path)["report.html"].split("</header>")[0]
    assert header.index("1.2 M") < header.index("واحدها") < header.index("۱۲")


def show(data, width=80):
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(terminal_table(data))
    return file.getvalue()


def test_the_terminal_shows_rows_and_claims(data):
    text = show(data)
    assert "0.95 [0.92, 0.98]" in text and "2.4 M" in text and "9.6 MB" in text and "1 min 20 s" in text
    assert "FAILS" in text and "{speedup: 1.813}" in text and "1 of 2 claims FAIL" in text


def test_the_terminal_obeys_no_text(data):
    data["rows"][0]["method"] = "[bold]x\x1b[2J"
    data["claims"][0]["statement"] = "[/nothing] \x1b[31m"
    text = show(data)
    assert "[bold]x" in text and "[/nothing]" in text and "\x1b" not in text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'{"rows": {}}', b'{"claims": 3}', b'{"metric": 1}', b'{"seed": NaN}', b'"\xff"'],
)
def test_a_corrupt_report_is_named_with_its_remedy(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UserError, match=r"report\.json is not a report .*limbeck run"):
        load_report(tmp_path)


def test_a_missing_report_is_named_with_its_remedy(tmp_path):
    with pytest.raises(UserError, match="no report in .*limbeck run"):
        load_report(tmp_path / "nowhere")


def test_what_a_comparison_adds_to_a_row(tmp_path):
    score = {"value": 0.9, "ci95": [0.85, 0.95], "n": 40}
    best = {"method": "full", "metrics": {"accuracy": score}, "train_flops": 2e12}
    prompt = {
        "method": "few_shot", "metrics": {"accuracy": score}, "latency_ms_p50": 9.0, "latency_ms_prefix": 1.5,
        "spread": {"minimum": 0.1, "median": 0.62, "maximum": 0.93, "n": 5},
        "difference": {"value": -0.05, "ci95": [-0.1, 0.01], "n": 40},
        "stereotyped": {"value": 0.6, "ci95": [0.5, 0.7], "n": 60},
    }  # fmt: skip
    write_report(tmp_path, {"rows": [best, prompt], "facts": [["advice", "Take <b>full</b>."]]})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("0.62 (0.10 to 0.93)", "-0.05 [-0.10, 0.01]", "0.60 [0.50, 0.70]", "1.5 ms", "2 T", "Take &lt;b&gt;"):
        assert text in page, text


def test_a_prompt_says_how_it_was_asked_and_what_it_hangs_on(tmp_path, prompted):
    write_report(tmp_path, prompted)
    assert load_report(tmp_path) == prompted
    for section, lesser in zip(sections(tmp_path, "The prompts"), ("&lt;", "\\<"), strict=True):
        assert f"shots 2; examples میوه/1, {lesser}script" in section and "seed 3" in section
        assert "members few_shot, zero_shot" in section
        for text in ("0.71", "0.68", "order &#39;shuffled&#39;; separator", "as above", "left out", "no room"):
            assert text in section.replace("'", "&#39;"), text
        assert "<script" not in section.replace("\\<", "&lt;")
        assert section.index("sum") < section.index("per token") < section.index("pmi") and "per byte" not in section
        assert "0.61" in section and "0.59" in section  # a view
    html, markdown = sections(tmp_path, "The prompts")
    assert "full" not in html.split("</table>")[0]  # asked as the task says, in no other way
    assert html.count("<svg") == 2 and "3, on 400 records" in html and "the sum of theirs" in html
    assert "| few_shot | 3 | 0.63" in markdown


def test_prompts_that_say_nothing_have_no_section(tmp_path, data):
    data["rows"][0]["prompt"] = {"seed": 0}
    write_report(tmp_path, data)
    assert "The prompts" not in read(tmp_path)["report.html"] + read(tmp_path)["report.md"]


def test_a_break_even_says_its_unit_with_and_without_a_kept_prefix(tmp_path, data):
    data["rows"][0]["latency_ms_prefix"] = 7.0
    data["break_even"] = break_even_table(data["rows"])
    write_report(tmp_path, data)
    section, _ = sections(tmp_path, "When the dearer start pays")
    kept = next(line for line in section.splitlines() if "prefix kept" in line)
    assert '<td class="n">7 ms</td>' in kept and '<td class="n">40 s</td>' in kept
    assert "prefix kept</text>" in section and "Dashed and hollow" in section
    del data["rows"][0]["latency_ms_prefix"]
    data["break_even"] = break_even_table(data["rows"])
    write_report(tmp_path, data)
    assert "Dashed" not in read(tmp_path)["report.html"]
