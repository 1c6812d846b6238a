"""A page in a real browser, driven through DevTools messages over two pipes: nothing but the standard library."""

import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
FLAGS += " --disable-component-update --disable-extensions --remote-debugging-pipe"
PATIENCE = 60
"""Seconds to wait for an answer; a browser that hangs fails a test, it does not stop the suite."""


class Browser:
    """One page. ``told``: what it complained of; ``asked``: what it requested."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        (theirs, self._write), (self._read, answers) = os.pipe(), os.pipe()
        # out of the way of 3 and 4, where the browser expects them
        read, write = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs, answers))
        command = f'exec "$0" "$@" 3<&{read} 4>&{write}'
        arguments = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, *arguments],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs, answers, read, write):
            os.close(end)
        self._rest, self._count, self._session = b"", 0, ""
        self.told: list[str] = []
        self.asked: list[str] = []
        self._loaded = False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], PATIENCE)[0], f"no answer from the browser in {PATIENCE} s"
            block = os.read(self._read, 1 << 20)
            assert block, "the browser ended"
            self._rest += block
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        method, of = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(of["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening"):  # fmt: skip
            self.told.append(json.dumps(of))
        elif method == "Page.loadEventFired":
            self._loaded = True
        return message

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """Load a page afresh and wait until it is there."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        self.told.clear()
        self.asked.clear()
        self._loaded = False
        self.send("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._next()

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the mouse where the element is, as a hand would."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{place}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(
            f"(() => {{ const b = {place}.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Tab": 9, "Escape": 27}.get(key, ord(key[0].upper()))
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                text=text * (kind == "keyDown"),
            )

    def choose(self, selector: str, value: str) -> None:
        """Set an input or a select, as a user's choice does."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)}; "
            "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    def close(self) -> None:
        self._session = ""
        os.write(self._write, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        os.close(self._write)
        os.close(self._read)


CONTRAST = """(() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = e => {
    const over = [];
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) over.push(c);
      if (c.length < 4 || c[3] === 1) break;
    }
    return over.reverse().reduce((under, c) => c.length < 4 ? c : under.map((v, i) => v + c[3] * (c[i] - v)), [255, 255, 255]);
  };
  const worst = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const [a, b] = [light(parse(svg ? style.fill : style.color)), light(ground(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) worst.push([ratio, e.outerHTML.slice(0, 90)]);
  }
  return worst;
})()"""
"""For `Browser.run`: [ratio, element] of each text whose contrast with its ground is below 4.5."""
