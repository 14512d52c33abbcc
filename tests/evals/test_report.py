"""The report of a run with made-up numbers: what it says, that it is whole, what it survives."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from jaxgpt.core.errors import UserError
from jaxgpt.core.experiment import Context, Experiment, Stage
from jaxgpt.core.page import fence
from jaxgpt.evals import report_content as content
from jaxgpt.evals.report import Report
from jaxgpt.evals.report_data import collect, git_commit
from jaxgpt.evals.report_html import html_page
from jaxgpt.evals.report_markdown import markdown_page

VOID = {"meta", "br", "line", "rect", "circle", "polyline", "img", "input", "hr", "link"}


@pytest.fixture
def run(finished):
    return collect(*finished)


def test_headlines_are_the_run_s_own_numbers(run):
    by_value = {h.value: h for h in content.headlines(run)}
    bits = run.stages[3].curve("val_bpb")[-1][1]
    assert f"{bits:.3f}" in by_value and "1.631" in by_value[f"{bits:.3f}"].note
    assert by_value["53% → 94%"].label.startswith("right answers on arithmetic")  # 106 and 187 of 200
    assert "1% of other answers" in by_value["96%"].note  # 48 of 50
    assert "8 min 09 s" in by_value  # 21.4 + 3.1 + 6.8 + 236 + 63 + 118 + 41 = 489.3 s


def test_summary_is_one_paragraph_with_the_same_numbers(run):
    text = content.summary(run)
    assert "1.31M parameters" in text and "1.631" in text and "96%" in text
    assert "from 53%" in text and "to 94%" in text and "\n" not in text


def test_stage_rows(run):
    rows = {row[0]: row for row in content.stage_rows(run)}
    assert list(rows) == ["curate", "tokenizer", "tokenize", "pretrain", "sft", "grpo", "evaluate"]
    assert rows["curate"][1] == "Gather documents, drop near-duplicates, split by document"
    assert rows["curate"][2].startswith("3,562 documents")  # 1712 + 1672 + 90 + 88
    assert rows["pretrain"][3:6] == ("3 min 56 s", "1.64M", f"{2048 * 800 / 236:,.0f}")
    assert rows["tokenize"][2] == "1.81M train, 96.3k val tokens"
    assert rows["evaluate"][2] == "3 models, 3 tasks"


def test_tokens_per_second_are_those_measured_where_they_were(run):
    rates = enumerate((10.0, 500.0, 520.0))
    lines = tuple({"step": i, "tokens": i, "tokens_per_second": rate} for i, rate in rates)
    assert dataclasses.replace(run.stages[3], metrics=lines).rate == 500.0


def test_charts(run):
    charts = {chart.title: chart for chart in content.charts(run)}
    bits = charts["pretrain: compression"]
    assert bits.reference.value == 1.631 and bits.x_label == "tokens"
    assert bits.series[0].points[-1] == (2048 * 800, run.stages[3].last("val_bpb"))
    assert [line.label for line in charts["sft: loss"].series if not line.faint] == ["training", "held out"]
    practice = [line.label for line in charts["grpo: practice"].series if not line.faint]
    assert practice == ["reward", "accuracy, held out", "right form"]
    assert "grpo: loss" not in charts and "grpo: length of an answer" in charts
    assert all(len(line.points) <= content.MOST_POINTS for chart in charts.values() for line in chart.series)


def test_leak_is_told_with_the_task_where_it_is_worst(run):
    share = {"count": 100, "interval": [0.0, 0.1]}
    by_task = {"sums": {**share, "rate": 0.0}, "talk": {**share, "rate": 0.07}}
    leak = {**run.leak, "rows": [{**share, "stage": "sft", "rate": 0.035, "by_task": by_task}]}
    told = content.leak_sentence(dataclasses.replace(run, leak=leak))
    assert "identity" in told and "most in talk: 7%" in told


def test_a_chart_of_one_line_names_it_beside_the_unit_and_a_repeated_line_is_drawn_once(run):
    lines = tuple({"step": i, "reward": i / 9, "accuracy": i / 9} for i in range(9))
    one = dataclasses.replace(run, stages=(dataclasses.replace(run.stages[5], metrics=lines, outputs={}),))
    [chart] = content.charts(one)
    assert chart.y_label == "mean of a batch, accuracy" and len(chart.series) == 1


def test_corpus_adds_up(run):
    rows = {row[0]: row[1:] for row in content.corpus_rows(run)}
    assert rows["gathered"][0] == "4,016" and rows["val"] == ("178", "178,014", "96,310")
    assert content.source_rows(run)[0] == ("docstrings", "2,204", "2,204,007", "1,802", "1,802,014")
    assert len(content.digests(run)) == 2


def test_html_is_well_formed_and_needs_nothing_from_outside(run):
    page = html_page(run)
    checker = _Checker()
    checker.feed(page)
    assert not checker.open and checker.seen > 500
    assert not re.findall(r"(?:src|href)=|url\(|@import|<script|<link", page)
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page.count("<svg") == len(content.charts(run)) + 3


@pytest.mark.parametrize("print_page", [html_page, markdown_page])
def test_both_pages_say_the_same(run, print_page):
    page = print_page(run)
    for text in ("1.562", "53% → 94%", "96%", "8 min 09 s", "jaxgpt chat", "1.631", "I am jaxgpt", "4,016",
                 "optim.lr", "0.003", "near-duplicates dropped", "Python", "Practise problems"):  # fmt: skip
        assert text in page, text
    assert page.index("Stages") < page.index("Curves") < page.index("Scores") < page.index("Samples")


def test_samples_keep_their_whitespace_and_are_escaped(run):
    assert "    def __init__(self, you=None):\n        <span" in html_page(run)  # then the ellipsis
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in html_page(run)
    assert "<b>&amp;</b>" in markdown_page(run)  # inside a fence it is as it was


def test_evil_texts_stay_texts(finished):
    experiment, workdir = finished
    evil = '</pre><script>alert(1)</script>"\'&'
    for name in ("evaluate/samples.json", "evaluate/scores.json"):
        path = workdir / name
        text = path.read_text().replace("jaxgpt", json.dumps(evil)[1:-1]).replace("arithmetic", "a<i>|b")
        path.write_text(text)
    samples = [{"step": 1, "prompt": evil, "completion": evil}]
    write_jsonl(workdir / "sft" / "samples.jsonl", samples)
    manifest = json.loads((workdir / "sft" / "manifest.json").read_text())
    manifest["settings"] |= {evil: evil}
    (workdir / "sft" / "manifest.json").write_text(json.dumps(manifest))
    run = collect(dataclasses.replace(experiment, name=evil), workdir)
    page = html_page(run)
    assert "<script" not in page and "<i>" not in page
    checker = _Checker()
    checker.feed(page)
    assert not checker.open
    assert "a\\<i>\\|b" in markdown_page(run)


def test_fence_is_longer_than_any_inside():
    assert fence("a\n````\nb").startswith("`````text\n") and fence("a\n````\nb").endswith("\n`````")


def test_half_a_last_line_is_ignored_and_any_other_is_named(finished):
    experiment, workdir = finished
    path = workdir / "grpo" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 121, "rew')
    assert collect(experiment, workdir).stages[5].metrics[-1]["step"] == 120
    lines = whole.split("\n")
    lines[2] = lines[2][:9]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"grpo/metrics\.jsonl, line 3"):
        collect(experiment, workdir)


def test_malformed_manifest_is_named(finished):
    experiment, workdir = finished
    (workdir / "sft" / "manifest.json").write_text("[1]")
    with pytest.raises(UserError, match=r"sft/manifest\.json: expected a JSON object"):
        collect(experiment, workdir)


@pytest.mark.parametrize("kept", [(), ("curate",), ("pretrain",), ("sft", "grpo"), ("evaluate",)])
@pytest.mark.parametrize("print_page", [html_page, markdown_page])
def test_any_part_of_a_run_makes_a_page(finished, kept, print_page):
    experiment, workdir = finished
    for stage in experiment.stages:
        if stage.name not in kept:
            (workdir / stage.name / "manifest.json").unlink()
    run = collect(experiment, workdir)
    assert [stage.name for stage in run.stages] == list(kept)
    assert "nan" not in print_page(run).lower().replace("nanogpt", "")


def test_a_stage_without_metrics_or_outputs_makes_a_row(finished):
    experiment, workdir = finished
    (workdir / "sft" / "metrics.jsonl").unlink()
    (workdir / "sft" / "manifest.json").write_text('{"stage": "sft"}')
    row = next(row for row in content.stage_rows(collect(experiment, workdir)) if row[0] == "sft")
    assert row[2:] == ("", "", "", "", "")
    assert "sft" in html_page(collect(experiment, workdir))


def test_numbers_that_are_not_finite_leave_a_gap(finished):
    experiment, workdir = finished
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}]
    write_jsonl(workdir / "sft" / "metrics.jsonl", lines)
    assert collect(experiment, workdir).stages[4].curve("loss") == ((1, 2.0),)


def test_a_base_model_is_sampled_from_and_not_talked_to(finished):
    experiment, workdir = finished
    for name in ("sft", "grpo", "evaluate"):
        (workdir / name / "manifest.json").unlink()
    assert collect(experiment, workdir).command.startswith("jaxgpt sample ")


def test_snapshots_go_from_the_first_to_the_last(run):
    samples = tuple({"step": i, "prompt": p, "completion": ""} for i in range(9) for p in ("a", "b"))
    shots = content.snapshots(dataclasses.replace(run.stages[3], samples=samples))
    assert [(s["step"], s["prompt"]) for s in shots] == [(0, "a"), (3, "a"), (5, "a"), (8, "a")]


def test_commit_is_this_clone_s_or_none():
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{12,40}(-dirty)?", commit)


@dataclasses.dataclass(frozen=True)
class Count(Stage):
    """Count to three."""

    name: str = "count"

    def run(self, context):
        return {"counted": 3}


def test_report_is_a_stage_like_any_other(tmp_path):
    from jaxgpt.core import experiment as running

    experiment = Experiment("tiny", stages=(Count(), Report(of=("count",))))
    running.run(experiment, tmp_path)
    context = Context(experiment, experiment.stages[-1], tmp_path)
    page = context.path("report", "html").read_text()
    assert "Count to three" in page and context.path("report", "markdown").read_text().startswith("# tiny")
    assert ">report<" not in page  # the page does not list itself


def write_jsonl(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class _Checker(HTMLParser):
    """Counts tags and keeps those that are open; a closing tag must fit the innermost open one."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], 0

    def handle_starttag(self, tag, attrs):
        self.seen += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag
