"""The panel in JupyterLab, in headless Chromium: first paint, clicks, streaming, idle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from playwright.sync_api import Page, WebSocket, sync_playwright

from benchmarks.figures import Report
from benchmarks.wire import write_words
from tests.browser.conftest import find_chromium
from tests.browser.lab import LabNotebook, LabServer

TOKENS = 2_000
MOST_FIRST_PAINT = 1_000
MOST_CLICK = 150
MOST_BYTES = 300_000
UPDATES = (10, 20)
LONGEST_TASK = 100
REST = 5
"""Seconds in which an idle panel is watched."""

_OBSERVERS = """() => {
    window.bench = {tasks: [], text: [], painted: null, since: 0};
    new PerformanceObserver((list) => {
        for (const task of list.getEntries()) bench.tasks.push([task.startTime, task.duration]);
    }).observe({type: "longtask"});
    bench.whenPainted = (selector) => {
        const before = document.querySelectorAll(selector).length;
        bench.since = bench.painted = 0;
        addEventListener("keydown", (event) => { bench.since ||= event.timeStamp; },
            {capture: true, once: true});
        const look = () => {
            const found = [...document.querySelectorAll(selector)];
            const there = found.length > before || bench.replaced?.isConnected === false;
            if (!there || !found.at(-1)?.offsetHeight) return requestAnimationFrame(look);
            requestAnimationFrame(() => setTimeout(() => { bench.painted = performance.now(); }));
        };
        bench.replaced = document.querySelectorAll(selector)[before - 1];
        look();
    };
    bench.whenChanged = (changed) => new Promise((resolve) => {
        let since;
        addEventListener("click", (event) => { since = event.timeStamp; },
            {capture: true, once: true});
        const look = () => {
            if (since !== undefined && changed()) resolve(performance.now() - since);
            else requestAnimationFrame(look);
        };
        look();
    });
    bench.watchText = (element) => {
        let before = 0;
        bench.text = [];
        new MutationObserver(() => {
            const length = element.textContent.length;
            if (length !== before) bench.text.push(performance.now());
            before = length;
        }).observe(element, {subtree: true, childList: true, characterData: true});
    };
}"""


def measure(folder: Path, *, paints: int, clicks: int, rates: list[float]) -> Report:
    """Measure in a separate browser.

    Parameters
    ----------
    folder : Path
        Folder for the server's files and the scripts.
    paints, clicks : int
        Number of measurements of each.
    rates : list of float
        Rates of the scripted answers, in tokens per second.
    """
    report = Report("panel", {"front end": "JupyterLab", "tokens": TOKENS})
    home = folder / "lab"
    home.mkdir()
    words = folder / "words.json"
    write_words(words, TOKENS, paragraphs=True)
    server = LabServer(home)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1100, "height": 1000})
            page.set_default_timeout(60_000)
            received = _Received(page)
            notebook = LabNotebook(
                page, server, server.add_notebook("bench", _cells(words, rates)), folder
            )
            page.evaluate(_OBSERVERS)
            notebook.run(0)
            _first_paint(report, notebook, paints)
            _stream(report, notebook, received, rates, clicks)
            _rest(report, page, received)
            browser.close()
    finally:
        server.close()
    return report


class _Received:
    """Bytes that came from the kernel, without the server's other messages to JupyterLab.

    Parameters
    ----------
    page : playwright.sync_api.Page
    """

    def __init__(self, page: Page) -> None:
        self.bytes = self.frames = 0
        page.on("websocket", self._opened)

    def _opened(self, socket: WebSocket) -> None:
        if "/api/kernels/" in socket.url:
            socket.on("framereceived", self._frame)

    def _frame(self, payload: str | bytes) -> None:
        self.frames += 1
        self.bytes += len(payload)


def _cells(words: Path, rates: list[float]) -> list[str]:
    setup = (
        "%load_ext mlx_magic\n%config VisionMagics.max_tokens = 5000\n"
        "from benchmarks import in_kernel"
    )
    scripts = [f"script = in_kernel.script({str(words)!r}, {rate})" for rate in rates]
    return [setup, "%vision panel", *scripts]


def _first_paint(report: Report, notebook: LabNotebook, count: int) -> None:
    """Time from the key that runs the cell to a panel on the page; the first run is a warm-up."""
    page = notebook.page
    times = []
    for _ in range(count + 1):
        page.evaluate("bench.whenPainted('.mlxm-prompt textarea')")
        notebook.start(1)
        page.wait_for_function("bench.painted")
        times.append(float(page.evaluate("bench.painted - bench.since")))
        notebook.finish(1)
    painted = report.add("first paint", "ms", times[1:])
    report.add("first paint in a fresh kernel", "ms", times[:1])
    report.expect("first paint, ms", painted.median, MOST_FIRST_PAINT)


def _stream(
    report: Report, notebook: LabNotebook, received: _Received, rates: list[float], clicks: int
) -> None:
    page = notebook.page
    for at, rate in enumerate(rates):
        notebook.run(2 + at)
        notebook.run(1)  # a panel of this session
        name = f"{TOKENS:,} tokens at {rate:g}/s"
        _ask(page)
        page.evaluate("bench.watchText(document.querySelector('.mlxm-conversation'))")
        page.evaluate("bench.tasks = []")
        before = received.bytes
        waits = _clicks(page, clicks) if at == 0 else []
        page.get_by_text(f"{TOKENS:,} written").or_(page.get_by_text(f"{TOKENS} written")).wait_for(
            timeout=1000 * (TOKENS / rate + 60)
        )
        size = received.bytes - before
        found: dict[str, Any] = page.evaluate("({text: bench.text, tasks: bench.tasks})")
        times = found["text"]
        pace = (len(times) - 1) / ((times[-1] - times[0]) / 1000)
        longest = max((duration for _, duration in found["tasks"]), default=0.0)
        report.add(f"{name}: received", "bytes", [size])
        report.add(f"{name}: updates a second", "", [pace])
        report.add(f"{name}: longest task of the page", "ms", [longest])
        report.expect(f"{name}: bytes", size, MOST_BYTES)
        report.expect(f"{name}: longest task, ms", longest, LONGEST_TASK)
        if rate >= 100:
            report.expect(f"{name}: updates a second", pace, UPDATES[0], at_least=True)
            report.expect(f"{name}: updates a second", pace, UPDATES[1])
        if waits:
            answered = report.add("a click while it writes", "ms", waits)
            report.expect("slowest click, ms", answered.highest, MOST_CLICK)


def _ask(page: Page) -> None:
    prompt = page.locator(".mlxm-prompt textarea")
    prompt.fill("Write.")
    prompt.press("Control+Enter")
    page.get_by_text("writing").first.wait_for()


def _clicks(page: Page, count: int) -> list[float]:
    """Check and uncheck Compare, to which the kernel replies with a second menu."""
    box = page.locator(".mlxm-composer .widget-checkbox input").first
    times = []
    for number in range(count):
        menus = 1 if number % 2 else 3
        waiting = (
            "bench.whenChanged(() => "
            f"document.querySelectorAll('.mlxm-composer .widget-dropdown').length === {menus + 1})"
        )
        page.evaluate(f"bench.answered = {waiting}; 0")
        box.click()
        times.append(float(page.evaluate("bench.answered")))
    return times


def _rest(report: Report, page: Page, received: _Received) -> None:
    """Measure an idle panel."""
    page.wait_for_timeout(2_000)
    [kernel] = [
        process
        for process in psutil.Process().children(recursive=True)
        if "ipykernel_launcher" in process.cmdline()
    ]
    frames, spent = received.frames, sum(kernel.cpu_times()[:2])
    page.wait_for_timeout(1_000 * REST)
    busy = sum(kernel.cpu_times()[:2]) - spent
    report.add(f"idle for {REST} s: messages", "", [received.frames - frames])
    report.add(f"idle for {REST} s: the kernel's processor time", "ms", [1_000 * busy])
    report.expect("idle: messages", received.frames - frames, 0)
    report.expect("idle: processor time, ms", 1_000 * busy, 10 * REST)
