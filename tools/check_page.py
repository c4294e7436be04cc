#!/usr/bin/env python3
"""Drives the chat page of a running rwkv-serve in headless Chromium.

    rwkv-serve --model MODEL --port 8080 &
    check_page.py http://127.0.0.1:8080 [--pid $!] [--picture page.png]

Sends a message, watches the answer stream in, changes settings, stops an answer, looks at the
state. With --pid, the server's process, it is killed in the middle of an answer, and the page must
say so. Needs only Python and a Chromium; the browser is spoken to over pipes. Exit code 77: there
is no Chromium.
"""

import argparse
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PATIENCE = 60  # seconds, for machines that do much else


class Browser:
    """Chromium's debugging protocol over --remote-debugging-pipe: JSON, ended by zero bytes."""

    def __init__(self, program, profile):
        to_read, self.write_end = os.pipe()
        self.read_end, to_write = os.pipe()

        def wire():
            os.dup2(to_read, 13)
            os.dup2(to_write, 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--remote-debugging-pipe", "--no-first-run", "--window-size=1280,860",
             "--user-data-dir=" + profile, "about:blank"],
            preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.rest, self.number, self.session, self.events = b"", 0, None, []

    def close(self):
        self.process.kill()
        self.process.wait()

    def message(self):
        while b"\0" not in self.rest:
            more = os.read(self.read_end, 1 << 16)
            if not more:
                raise SystemExit("check_page: the browser ended")
            self.rest += more
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, **params):
        self.number += 1
        request = {"id": self.number, "method": method, "params": params}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.write_end, json.dumps(request).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise SystemExit(f"check_page: {method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def open(self, url):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Network.enable")
        self.call("Page.navigate", url=url)

    def value(self, expression):
        r = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in r:
            raise SystemExit(f"check_page: {expression}: {r['exceptionDetails']}")
        return r["result"].get("value")

    def wait(self, what, expression):
        limit = time.monotonic() + PATIENCE
        while True:
            value = self.value(expression)
            if value:
                return value
            if time.monotonic() > limit:
                raise SystemExit(f"check_page: waited {PATIENCE} s for {what}; the page says: " +
                                 self.value("document.body.innerText")[-500:])
            time.sleep(0.02)

    def requests(self):
        """Bodies of the answers that the page has asked for."""
        self.value("0")
        return [json.loads(e["params"]["request"]["postData"]) for e in self.events
                if e["method"] == "Network.requestWillBeSent"
                and e["params"]["request"]["url"].endswith("/chat/completions")]


def type_message(page, text):
    page.value("document.getElementById('input').focus()")
    page.call("Input.insertText", text=text)
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                  windowsVirtualKeyCode=13)


def set_field(page, field, value):
    page.value(f"document.getElementById('{field}').value = {json.dumps(str(value))}")


LAST = "[...document.querySelectorAll('.turn.assistant .text')].at(-1)?.textContent ?? ''"
IDLE = "!document.getElementById('send').disabled"
ERRORS = "[...document.querySelectorAll('.error')].map(e => e.textContent)"


def check(ok, what):
    if not ok:
        raise SystemExit("check_page: " + what)
    print("ok", what)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, help="of the server, which is killed at the end")
    parser.add_argument("--picture", help="write a picture of the page to this PNG file")
    parser.add_argument("--message", default="Say the alphabet.", help="the first message")
    parser.add_argument("--browser", default=os.environ.get("CHROMIUM"))
    a = parser.parse_args()
    program = a.browser or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        print("check_page: no Chromium on the PATH")
        return 77
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        page = Browser(program, profile)
        try:
            drive(page, a)
        finally:
            page.close()
    return 0


def drive(page, a):
    page.open(a.url)
    name = page.wait("the model's name", "(t => t && t !== 'connecting' ? t : '')"
                                         "(document.getElementById('model')?.textContent)")
    check("not reachable" not in name and "status" not in name, f"the page shows the model: {name}")

    # Every length that the answer is shown with.
    page.value("""
        window.lengths = [];
        new MutationObserver(() => {
          const n = (%s).length;
          if (n !== window.lengths.at(-1)) window.lengths.push(n);
        }).observe(document.getElementById('log'), {childList: true, subtree: true,
                                                    characterData: true}); 0""" % LAST)
    set_field(page, "max_tokens", 60)
    set_field(page, "temperature", 0)
    type_message(page, a.message)
    page.wait("an answer", f"{IDLE} && ({LAST}).length > 0")
    check(page.value(ERRORS) == [], "an answer without errors")
    lengths = [n for n in page.value("window.lengths") if n > 0]
    check(len(lengths) > 3 and lengths == sorted(lengths), f"it came in {len(lengths)} pieces")
    check("tokens/s" in page.value("document.getElementById('rate').textContent"),
          "the rate is shown")

    for field, value in (("temperature", 0.7), ("top_p", 0.9), ("top_k", 40), ("seed", 11),
                         ("presence_penalty", 0.25), ("max_tokens", 40)):
        set_field(page, field, value)
    set_field(page, "system", "Be brief.")
    type_message(page, "Once more.")
    page.wait("a second answer", f"{IDLE} && document.querySelectorAll('.turn').length === 4")
    body = page.requests()[-1]
    check((body["temperature"], body["top_p"], body["top_k"], body["seed"],
           body["presence_penalty"], body["max_tokens"]) == (0.7, 0.9, 40, 11, 0.25, 40),
          "settings are in the request")
    check([m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"],
          "so are the system message and the turns before")

    page.value("document.getElementById('inspect').click()")
    blocks = page.wait("pictures of the state",
                       "document.querySelectorAll('#layers canvas').length")
    check(blocks >= 1, "the state is shown")
    if a.picture:
        time.sleep(1)
        with open(a.picture, "wb") as f:
            f.write(base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"]))
        print("wrote", a.picture)

    set_field(page, "max_tokens", 4000)
    type_message(page, "Do not stop.")
    page.wait("a long answer", f"({LAST}).length > 30")
    page.value("document.getElementById('stop').click()")
    page.wait("the stop", IDLE)
    length = page.value(f"({LAST}).length")
    time.sleep(0.5)
    check(page.value(f"({LAST}).length") == length and page.value(ERRORS) == [],
          "an answer is stopped and stays")

    if a.pid is None:
        return
    type_message(page, "And on.")
    page.wait("an answer to cut off",
              f"document.querySelectorAll('.turn').length === 8 && ({LAST}).length > 30")
    os.kill(a.pid, signal.SIGKILL)
    page.wait("the error", f"({ERRORS}).length === 1")
    check(page.value(IDLE), "a server that goes away is an error: " + page.value(ERRORS)[0])
    type_message(page, "Still there?")
    page.wait("another error", f"({ERRORS}).length === 2")
    check("went away" in page.value(ERRORS)[1], "and so is one that is not there")


if __name__ == "__main__":
    sys.exit(main())
