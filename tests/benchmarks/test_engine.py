from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from benchmarks import engine, random_model, reuse
from benchmarks.engine import COUNTS, CPU_LIMITS, GPU_LIMITS, Limits, Rounds
from benchmarks.figures import Report
from benchmarks.peers import Peer, Worker, running
from benchmarks.reuse import Chat, Seen
from benchmarks.workload import Answer, Ask, Burst, DrawnImages
from mlx_magic import demo


def burst(count: int, wall: float, text: str = "same") -> Burst:
    answers = tuple(Answer(wall / 2, wall, 10, text, step=wall / 20) for _ in range(count))
    return Burst(wall, answers, peak=2**20)


def rounds(*, server: bool = True, ours: str = "same") -> Rounds:
    held = Rounds()
    walls = {"raw": 8.0, "batch": 4.0, "ours": 2.0, **({"server": 6.0} if server else {})}
    for count in COUNTS:
        for same in (False, True):
            for name, wall in walls.items():
                text = ours if name == "ours" else "same"
                held.bursts[count, same][name] = [burst(count, wall, text)]
    return held


def report(held: Rounds, limits: Limits) -> Report:
    names = list(held.bursts[1, False])
    return engine._report(held, names, limits, dict.fromkeys(names, 2**20))


def test_report_has_ratios_and_targets() -> None:
    made = report(rounds(), CPU_LIMITS)
    rows = {row.what: row.summary.median for row in made.rows}
    targets = {target.what: target for target in made.targets}
    assert rows["32 at once, one image, ours/raw"] == 4.0
    assert rows["8 at once, different images, one BatchGenerator/raw"] == 2.0
    assert rows["alone, ours/raw: the median step from one token to the next"] == 0.25
    assert targets["32 at once, different images, ours/server"].measured == 3.0
    last = targets["32 at once, different images, ours/server: last first token"]
    assert last.measured == pytest.approx(1 / 3)
    assert all(target.met for target in made.targets if "alone" not in target.what)
    assert targets["alone, ours/raw: decode"].at_least


def test_gpu_report_has_no_server_target() -> None:
    made = report(rounds(), GPU_LIMITS)
    assert not [target for target in made.targets if "server" in target.what]
    assert [row for row in made.rows if "server" in row.what]


def test_report_without_a_server_says_not_installed() -> None:
    made = report(rounds(server=False), CPU_LIMITS)
    assert made.settings["mlx-vlm's server"] == "not installed"
    assert not [row for row in made.rows if "server" in row.what]


def test_report_counts_answers_that_differ() -> None:
    made = report(rounds(ours="other"), CPU_LIMITS)
    assert made.settings["same text, ours and raw"] == "0 of 82"
    assert made.settings["same text, one BatchGenerator and raw"] == "82 of 82"


class FakePeer:
    """Answers, or fails as a process does that wrote an error and ended."""

    pid = 0

    def __init__(self, name: str, error: str = "") -> None:
        self.name, self._error, self.closed = name, error, False

    def wait(self) -> None:
        pass

    def answer(self, asks: Sequence[Ask], max_tokens: int) -> Burst:
        if self._error:
            raise RuntimeError(self._error)
        return burst(len(asks), 1.0)

    def close(self) -> None:
        self.closed = True


def test_peer_that_cannot_answer_is_left_out_with_the_reason(tmp_path: Path) -> None:
    error = "The process of 'batch' ended; it wrote last:\nTraceback\nValueError: mask"
    raw, batch = FakePeer("raw"), FakePeer("batch", error)
    able, failed = engine._warmed_up([raw, batch], DrawnImages(tmp_path, (8, 8)), 4)
    assert able == [raw]
    assert batch.closed
    assert not raw.closed
    assert failed == {
        "one BatchGenerator": "failed: The process of 'batch' ended: ValueError: mask"
    }


@pytest.mark.parametrize("name", ["raw", "ours"])
def test_raw_and_ours_must_answer(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        engine._warmed_up([FakePeer(name, "broken")], DrawnImages(tmp_path, (8, 8)), 4)


def test_each_peer_starts_first_once() -> None:
    peers: list[Peer] = [Worker.__new__(Worker) for _ in range(3)]
    orders = [engine.in_turn(peers, turn) for turn in range(3)]
    assert {id(order[0]) for order in orders} == {id(peer) for peer in peers}
    assert all({*map(id, order)} == {*map(id, peers)} for order in orders)


def test_first_round_has_every_kind_of_load() -> None:
    plan = list(engine._plan(2, 5))
    assert set(plan[:5]) == set(plan)
    assert (plan.count((1, False)), plan.count((32, True))) == (5, 2)


def seen(image_tokens: int, cached: int) -> Seen:
    first, second = (Answer(at, 9.0, 4, "a", 1100, 0, image_tokens) for at in (1.0, 0.1))
    last = Answer(0.2, 9.0, 4, "b", 2000, cached)
    return Seen(
        {"raw": [(first, first)], "ours": [(first, second)]}, [Chat([last], Answer(2.0, 9, 4, "b"))]
    )


def test_prefilled_share_is_a_percentage_of_the_prompt() -> None:
    made = reuse._report(seen(1024, 1900), ["raw", "ours"])
    measured = {target.what: target.measured for target in made.targets}
    assert measured["second question/first, first token"] == pytest.approx(0.1)
    assert measured["tenth turn: of the prompt read again, %"] == pytest.approx(5.0)
    assert made.settings["same text, ours and raw"] == "3 of 3"


def test_image_with_too_few_tokens_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="only 64 tokens"):
        reuse._report(seen(64, 0), ["raw", "ours"])


def test_twin_model_links_weights_and_enables_tiling(tmp_path: Path) -> None:
    twin = random_model.twin(demo.folder(), tmp_path / "twin", tiles=True, float32=False)
    assert (twin / "model.safetensors").samefile(demo.folder() / "model.safetensors")
    assert '"do_image_splitting": true' in (twin / "preprocessor_config.json").read_text("utf-8")
    assert (twin / "config.json").read_text("utf-8") == (demo.folder() / "config.json").read_text(
        "utf-8"
    )


@pytest.mark.model
@pytest.mark.timeout(300)
def test_all_in_process_variants_give_the_same_answers(tmp_path: Path) -> None:
    model = random_model.twin(demo.folder(), tmp_path / "model", tiles=False, float32=True)
    images = DrawnImages(tmp_path / "images")
    asks = [Ask("What is this?", images.draw()), Ask("Where is the square?", images.draw())]
    chat = [Ask("And now?", images.draw(), (("What is this?", "A digit."),))]
    starts = [partial(Worker, name, model, tmp_path) for name in ("raw", "batch", "ours")]
    with running(starts) as peers:
        for held in (asks, chat):
            raw, batch, ours = (peer.answer(held, 6) for peer in peers)
            assert raw.texts == batch.texts == ours.texts
            prompts = [[answer.prompt_tokens for answer in one.answers] for one in (raw, ours)]
            assert prompts[0] == prompts[1]
            assert all(0 < answer.first <= answer.last <= ours.wall for answer in ours.answers)
            assert ours.answers[0].image_tokens == 64
