"""The report and what it is made of: from real searches over a made-up problem, and from files as they are written."""

import io
import json
import math
import os
import re
import sqlite3
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest
from made_results import OBJECTIVE, SPACE, made_result, measured
from rich.console import Console

from model_opt.autotuner.figures import Figure
from model_opt.autotuner.folder import PROGRESS_FILE, folders
from model_opt.autotuner.progress_log import ProgressLog, read_progress
from model_opt.autotuner.result import CompressionResult
from model_opt.autotuner.tally import Tally
from model_opt.cli.explain import explained
from model_opt.cli.tables import print_result
from model_opt.errors import InvalidInput
from model_opt.fleet import submission
from model_opt.fleet.concluding import Concluder, wanted_facts
from model_opt.fleet.coordinator_service import STATE_FILE, CoordinatorService
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.journal import SqliteJournal
from model_opt.fleet.messages import Changes, LeaseResult
from model_opt.fleet.proposer import Search
from model_opt.fleet.submission import Manifest, Submission
from model_opt.measuring.deadlines import Deadlines
from model_opt.report.charts import charts
from model_opt.report.live import summary
from model_opt.report.page import report_page
from model_opt.report.pareto import draw_pareto
from model_opt.report.tree import grow
from model_opt.report.view import find, of_fleet, of_folder, of_result
from model_opt.report.watching import Watching
from model_opt.search.evaluator import Failure, Measurement, Purpose, Reason
from model_opt.search.plan import Choice, Plan
from model_opt.search.trial import Trial


@pytest.fixture(scope="module")
def result():
    return made_result(24)


@pytest.fixture(scope="module")
def fleet():
    return made_result(16, seed=3, workers=3)


def plain(value):
    """A figure with real colours in place of the page's names."""
    if isinstance(value, str):
        return "#123456" if value.startswith("var:") else value
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_every_chart_is_a_figure_that_plotly_takes(result, fleet):
    for view in (of_result(result, "one"), of_result(fleet, "many")):
        for chart in charts(view):
            assert chart.figure is not None or chart.missing
            if chart.figure is not None:
                go.Figure(plain(chart.figure))
                assert chart.rows and all(len(row) == len(chart.heads) for row in chart.rows)


def test_the_front_has_intervals_and_the_chosen_plan(result):
    figure = charts(of_result(result, "one"))[0].figure
    front = next(trace for trace in figure["data"] if trace["name"] == "best trade-offs")
    assert max(front["error_x"]["array"]) > 0 and len(front["x"]) == len(result.pareto)
    chosen = figure["data"][-1]
    assert chosen["x"] == [result.speedup] and chosen["marker"]["symbol"] == "diamond"
    assert "at most 2 % lost" in json.dumps(figure["layout"])


def test_the_best_so_far_only_grows_and_ends_at_the_answer(result):
    view = of_result(result, "one")
    line = next(trace for trace in charts(view)[1].figure["data"] if trace["mode"] == "lines")
    assert line["y"] == sorted(line["y"]) and line["x"] == sorted(line["x"])
    assert line["y"][-1] == view.reward(view.best())


def test_the_tree_counts_every_plan_once_at_the_root(result):
    root = grow(of_result(result, "one"))
    assert root.plans == len(result.observations)

    def check(node):
        assert sum(child.plans for child in node.children.values()) <= node.plans
        assert all(child.best is None or child.best <= node.best for child in node.children.values())
        for child in node.children.values():
            check(child)

    check(root)
    first = max(result.importance, key=result.importance.get)
    assert any(label.startswith(f"{first}=") for label in root.children)


def test_predictions_are_those_made_before_measuring(result, fleet):
    chart = charts(of_result(result, "one"))[4]
    assert int(chart.rows[0][1]) >= 8
    told = charts(of_result(fleet, "many"))[4]
    assert int(told.rows[0][1]) >= 8 and "Of a fleet" in told.about


def test_each_worker_has_its_lane(fleet):
    chart = charts(of_result(fleet, "many"))[5]
    assert [row[0] for row in chart.rows] == ["node0-0", "node0-1", "node1-0"]
    assert sum(int(row[1]) for row in chart.rows) == len(fleet.observations)
    assert "One worker" in charts(of_result(made_result(4), "one"))[5].about


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.fetched, self.ids, self.scripts = [], [], 0

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.fetched += [given[name] for name in ("src", "href") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        self.scripts += tag == "script"


def test_the_page_is_one_file_with_plotly_once(result):
    text = report_page(of_result(result, "<one> & only"))
    outline = Outline()
    outline.feed(text)
    assert outline.fetched == ["data:,", "#main"], "nothing is fetched"
    assert len(outline.ids) == len(set(outline.ids)) and outline.scripts == 2
    assert text.count("plotly.js v") <= 2 and "&lt;one&gt; &amp; only" in text
    for name in ("pareto", "rewards", "tree", "importance", "predictions", "timeline"):
        assert f'id="{name}"' in text
    assert "3f3f3f" in text and "98.0%" in text, "origins and how alike"
    assert "NaN" not in text.split("const FIGURES = ")[1].split(";\n")[0]


def test_old_results_without_the_new_fields_are_shown(result):
    raw = json.loads(result.to_json())
    del raw["tree"]
    for seen in raw["observations"]:
        del seen["predicted"], seen["worker"]
    for point in raw["pareto"]:
        del point["intervals"]
    old = CompressionResult.from_json(json.dumps(raw))
    assert "There are no predictions here" in report_page(of_result(old, "old"))


def test_nothing_measured_says_so(result):
    empty = replace(result, observations=(), pareto=(), importance={})
    text = report_page(of_result(empty, "empty"))
    assert text.count("Nothing has been measured yet") >= 3


# files that are being written ---------------------------------------------------------------------------------------


def seen(number):
    plan = Plan((Choice(decision="prune", option=str(number)),))
    metrics = {"log_speedup": 0.1 * number, "log_size_ratio": 0.2, "accuracy_drop": 0.001 * number}
    samples = {name: (value,) for name, value in metrics.items()}
    outcome = Measurement(plan=plan, samples=samples, seconds={"time": 0.5})
    return Trial(plan=plan, purpose="explore", outcome=outcome, at_s=float(number))


def test_a_running_search_is_read_as_far_as_it_was_written(tmp_path):
    bounds = {"max_accuracy_drop": 0.002, "max_latency_ms": 0.85}
    log = ProgressLog(tmp_path / "out", {"method": "mcts", "constraints": bounds})
    log.on_phase("baseline", None)
    log.on_baseline({"latency_ms": 1.0, "size_bytes": 1e6})
    assert not (tmp_path / "out").exists(), "nothing is written before the search begins"
    log.on_start(plans=10, budget=5)
    for number in (1, 2, 3):
        log.on_measurement(seen(number), settled=number, budget=5, best=seen(number).plan if number < 3 else None)
    path = tmp_path / "out" / PROGRESS_FILE
    whole = path.read_text()
    path.write_text(whole + '{"event": "measurement", "at_s": 3')
    progress = read_progress(tmp_path / "out")
    path.write_text(whole)
    assert progress.running and progress.settled == 3 and progress.observations[1] == seen(2)
    view = of_folder(tmp_path / "out", "out")
    assert view.running and view.budget == 5 and view.best() == seen(2)
    assert [view.feasible(seen(number)) for number in (1, 2, 3)] == [False, True, False], "slow, kept, lossy"
    assert folders([tmp_path]) == [tmp_path / "out"]
    with pytest.raises(ZeroDivisionError), log:
        raise ZeroDivisionError("a reason")
    ended = of_folder(tmp_path / "out", "out")
    assert ended.state == "interrupted" and ended.notes == ("ZeroDivisionError: a reason",)
    with log:
        log.on_start(plans=10, budget=5)
        assert of_folder(tmp_path / "out", "out").running
    assert not path.exists(), "the result says all that it did"


@pytest.mark.parametrize(
    ("bounds", "baseline", "told"),
    [({"speed": 2.0}, {"latency_ms": 1.0, "size_bytes": 1e6}, "speed"), ({}, {"latency_ms": 1.0}, "size_bytes")],
)
def test_constraints_or_a_baseline_that_nobody_of_ours_wrote_are_told(tmp_path, bounds, baseline, told):
    log = ProgressLog(tmp_path, {"constraints": bounds})
    log.on_baseline(baseline)
    log.on_start(plans=1, budget=1)
    with pytest.raises(InvalidInput, match=told):
        of_folder(tmp_path, "x")


def test_a_search_whose_process_is_gone_was_interrupted(tmp_path):
    log = ProgressLog(tmp_path, {})
    log.on_start(plans=1, budget=1)
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    path = tmp_path / PROGRESS_FILE
    path.write_text(re.sub(r'"pid": \d+', f'"pid": {gone}', path.read_text()))
    assert of_folder(tmp_path, "x").state == "interrupted"


@pytest.mark.parametrize("text", ["", "{}", "nonsense\nmore", '{"event": "start"}', '[1]\n{"event": "start"}'])
def test_a_file_that_is_no_progress_is_refused(tmp_path, text):
    (tmp_path / PROGRESS_FILE).write_text(text)
    with pytest.raises(InvalidInput):
        read_progress(tmp_path)


@pytest.fixture
def state(tmp_path):
    """A fleet's state folder, written as a coordinator writes it."""
    import random

    folder = tmp_path / "night"
    folder.mkdir()
    (folder / submission.FACTORY).write_bytes(b"factory")
    rules = FleetRules(budget=20, objective=OBJECTIVE)
    search = Search(space=SPACE, objective=OBJECTIVE)
    request = Submission(
        search=search, rules=rules, placement=submission.Placement(), deadlines=Deadlines(), sharing=None
    )
    submission.complete(folder, Manifest(digest=submission._digest(folder / submission.FACTORY), size_bytes=7), request)
    journal = SqliteJournal(folder / STATE_FILE)
    term, _, _ = journal.begin()
    rng = random.Random(0)
    plans = [SPACE.plan({"prune": p, "precision": q}) for p in ("0", "0.25", "0.5") for q in ("fp32", "int8_static")]
    kept = [
        LeaseResult(
            lease_id=f"l{i}",
            attempt=1,
            trial=Trial(
                plan=plan,
                purpose=Purpose.EXPLORE,
                outcome=measured(plan, rng),
                at_s=1000.0 + i,
                busy_s=1.0,
                context="c",
                worker=f"w{i % 2}",
            ),
            position=i,
        )
        for i, plan in enumerate(plans)
    ]
    journal.commit(term, [Changes(results=tuple(kept), facts={"first_grant_s": 999.0, **wanted_facts(request)})])
    yield folder
    journal.close()


def test_a_fleet_is_seen_while_it_writes(state):
    view = of_fleet(state)
    assert view.running and view.settled == 6 and view.budget == 20 and view.where == "fleet"
    assert [o.at_s for o in view.observations] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert view.observations[1].worker == "w1" and not view.importance and not view.observations[-1].predicted
    assert find("night", str(state.parent)).name == "night"
    assert 'id="timeline"' in report_page(view)


def test_what_a_fleet_has_learnt_is_read_from_its_state_and_nothing_is_unpickled(state):
    request = submission.read(state)[1]
    service = CoordinatorService.at(state, request.rules)
    Concluder(service, request.search).keep()
    service.close()
    (state / submission.REQUEST).write_bytes(b"nothing that could be unpickled")
    view = of_fleet(state)
    assert math.isclose(sum(view.importance.values()), 1.0) and view.observations[-1].predicted
    assert 'id="predictions"' in report_page(view)


def test_a_state_of_another_version_is_refused(state):
    with sqlite3.connect(state / STATE_FILE) as db:
        db.execute("DELETE FROM facts WHERE name = 'objective'")
    with pytest.raises(InvalidInput, match="another version"):
        of_fleet(state)


def test_a_name_that_is_nothing_says_what_there_is(state):
    with pytest.raises(InvalidInput, match="kept: night"):
        find("nowhere", str(state.parent))


def test_the_picture_shows_every_measured_plan_in_any_viewer(result, tmp_path):
    draw_pareto(result, tmp_path / "plans.svg")
    drawn = ElementTree.parse(tmp_path / "plans.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    groups = {each.get("id"): each for each in drawn.iter(f"{space}g") if each.get("id")}
    dots = [group for name, group in groups.items() if name.startswith("PathCollection")]
    shown = sum(len(list(group.iter(f"{space}use"))) for group in dots)
    others = {seen.plan for seen in result.observations if seen.failure is None} - {result.plan}
    assert shown >= len(others) > 10
    assert "fill: #ffffff" in next(drawn.iter(f"{space}path")).get("style"), "a ground of its own"
    assert not list(drawn.iter(f"{space}text")), "no font is needed"


def failed(trial, reason, message):
    outcome = Failure(plan=trial.plan, reason=reason, message=message, seconds=trial.seconds)
    return replace(trial, purpose="explore", outcome=outcome)


def test_one_thing_has_one_number_everywhere(result, tmp_path):
    """The terminal's table, the page, the list of the live page, the notebook and `explain` say the same."""
    refused = [failed(seen, Reason.ILLEGAL, "nothing to prune") for seen in result.observations[-3:]]
    cut = failed(result.observations[0], Reason.DEADLINE, "the search's time was up")
    figures = dict(result.figures) | {
        "speedup": Figure(value=2.5, low=2.2, high=2.9),
        "latency_ms": Figure(value=4.0, low=3.9, high=4.1),
        "accuracy_drop": Figure(value=-0.0208, low=-0.03, high=0.01),
        "compression_ratio": Figure.exact(1 / 76),
    }
    told = replace(result, figures=figures, observations=(*result.observations[:-3], *refused, cut))
    tried = str(Tally.of(told.observations))
    assert "refused, 1 cut off" in tried
    console = Console(width=200, record=True, file=io.StringIO())
    print_result(told, console)
    told.save(tmp_path / "one")
    (listed,) = Watching([tmp_path], str(tmp_path / "none"), tmp_path / "kb.db").runs()
    shown = {
        "table": console.export_text(),
        "page": unescape(report_page(of_result(told, "one")).split("<script>")[0]),
        "notebook": unescape(told._repr_html_()),
        "list": json.dumps(summary(listed)),
    }
    for where, text in shown.items():
        assert tried in text and "2.50x" in text, where
    for where in ("table", "page"):
        assert "10.000 ms" in shown[where], "the original's, from the final figures"
    for where in ("table", "page", "notebook"):
        assert "76.00x" in shown[where] and "larger" in shown[where] and "0.01x" not in shown[where]
        assert "2.08%" in shown[where] and "gained" in shown[where] and "-2.08" not in shown[where]
    assert explained(told)["tried"] == tried
