"""The pages in a real browser, end to end. Any error in its console is a failure."""

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from deepseek_gateway.people.service import TeamDraft
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.issuer import Issuer
from deepseek_gateway.testing.serving import serving
from deepseek_gateway.testing.stack import OPERATOR, Stack, running_stack
from deepseek_gateway.testing.visitor import PASSWORD
from deepseek_gateway.web.accounts import Accounts

playwright_api = pytest.importorskip("playwright.async_api", reason="no playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.usefixtures("cheap_passwords"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium, or set CHROMIUM"),
]

ANSWER = (
    {"reasoning_content": "The user wants **a list**."},
    {"content": "# Title\n\nSome **bold** and `code` <script>alert(1)</script>\n\n"},
    {
        "content": "1. one\n2. two\n\n[good](https://example.org) [bad](javascript:alert(1)) ![pixel](https://evil.example/p)"
    },
    {"content": "\n\n- [x] done\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\nprint('<b>')\n```"},
)

ANSWERED = ".turn.assistant:not([aria-busy])"

HAS_COLOUR = """(name) => {
  const canvas = document.querySelector(`[data-chart=${name}] canvas`);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const isColoured = (at) => Math.max(...data.slice(at, at + 3)) - Math.min(...data.slice(at, at + 3)) > 60;
  let number = 0;
  for (let at = 0; at < data.length; at += 4) if (data[at + 3] > 0 && isColoured(at)) number++;
  return number > 20;
}"""
"""Whether something is drawn in a chart beside its axes, which are grey. A line without length has some pixels too."""


class Browser:
    """A page of a fresh browser profile, and what went wrong in it."""

    def __init__(self, stack: Stack, page) -> None:
        self.stack, self.page, self.faults = stack, page, []
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self._note(message))

    def _note(self, message) -> None:
        if message.type in {"error", "warning"}:
            self.faults.append(f"{message.text} at {self.page.url}")

    def forgive(self, status: str) -> None:
        """Chromium tells of every failed request on the console; one was meant."""
        self.faults = [fault for fault in self.faults if f"status of {status}" not in fault]

    async def open(self, path: str) -> None:
        await self.page.goto(f"{self.stack.running.url}{path}")

    async def sign_in(self) -> None:
        await self.open("/ui/login")
        await self.page.fill("#name", "admin")
        await self.page.fill("#password", PASSWORD)
        await self.page.click("form.stack button")
        await self.page.wait_for_selector("[data-figures]")

    async def text(self, selector: str) -> str:
        return await self.page.inner_text(selector)


@pytest.fixture(scope="module")
def chromium_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Chromium for all tests: each takes a profile of its own in it."""
    folder = tmp_path_factory.mktemp("chromium")
    port_file = folder / "DevToolsActivePort"
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "--no-first-run",
    ]
    process = subprocess.Popen([CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (port_file.exists() and "\n" in port_file.read_text()):
            assert process.poll() is None, "chromium ended"
            assert time.monotonic() < deadline, "chromium did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port_file.read_text().split()[0]}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
async def chromium(chromium_url: str) -> AsyncIterator[object]:
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium_url)
        yield browser
        await browser.close()


@pytest.fixture
async def browser(stack: Stack, chromium) -> AsyncIterator[Browser]:
    await asyncio.to_thread(Accounts(stack.gateway.store).create, "admin", PASSWORD)
    stack.engine.script = {"deltas": ANSWER, "tokens": len(ANSWER), "prompt_tokens": 5}
    context = await chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    browser = Browser(stack, await context.new_page())
    await browser.sign_in()
    yield browser
    await context.close()
    assert browser.faults == []


async def test_a_key_lives_its_life_in_the_pages(stack: Stack, browser: Browser) -> None:
    page = browser.page
    await page.click("text=API keys")
    await page.click("text=New key")
    await page.click("text=Create key")  # without a name
    assert "1 to 100" in await browser.text("#name-fault")
    await page.fill("#name", "from the browser")
    await page.fill("#cidrs", "10.0.0.1/8")
    await page.click("text=Create key")
    await page.wait_for_selector("#cidrs-fault")
    assert await page.evaluate("document.activeElement.id") == "cidrs"  # the first fault is where one goes on
    await page.fill("#cidrs", "")
    browser.forgive("422")
    await page.fill("#name", "from the browser")
    await page.fill("#requests_per_minute", "1,000")
    await page.click("text=Create key")
    key = await browser.text("#secret")
    await page.click("[data-copy=secret]")
    assert await page.evaluate("navigator.clipboard.readText()") == key
    caller = stack.caller.with_key(key)
    for stream in (False, False, True):
        assert (await caller.post(body={"prompt": "a", "stream": stream})).status == 200
    await stack.running.rows(3)
    await page.click("nav >> text=Usage")
    await page.select_option("#by", "key")
    await page.click("button:has-text('Show')")
    row = page.locator("tbody tr", has_text="from the browser")
    assert await row.locator(".number").first.inner_text() == "3"
    await page.click("nav >> text=Overview")
    assert await browser.text('[data-tile="requests"]') == "3"
    assert await page.locator(".plot canvas").count() == 5
    await page.wait_for_function(HAS_COLOUR, arg="ttft")  # one slot with a value makes a point, as it makes no line
    await page.click("nav >> text=API keys")
    await page.click("text=from the browser")
    await page.click("button:has-text('Revoke')")
    await page.click("dialog button[value=no]")
    assert (await caller.post()).status == 200
    await page.click("button:has-text('Revoke')")
    await page.click("dialog button[value=yes]")
    await page.wait_for_selector("text=The key is revoked")
    assert await page.locator(".badge.revoked").count() == 1
    async with asyncio.timeout(30):
        while (await caller.post()).status == 200:
            pass


async def test_the_overview_follows_what_happens(stack: Stack, browser: Browser, monkeypatch) -> None:
    page = browser.page
    assert await page.locator(".empty.card").is_visible()
    assert not await page.locator("[data-chart=requests]").is_visible()
    await stack.caller.post()
    await stack.running.rows(1)
    await page.reload()
    assert await page.locator("[data-chart=requests]").is_visible()
    assert not await page.locator(".empty.card").is_visible()
    assert await browser.text("[data-chart=requests] .legend output >> nth=0") == "1"  # of the whole time
    assert await page.locator("[data-top=keys] tr").count() == 1
    assert await browser.text("[data-problem]") == "Ready"
    with monkeypatch.context() as patch:
        patch.setattr("deepseek_gateway.gateway.Gateway.faults", lambda _: ["Redis is away"])
        await page.wait_for_selector("text=Works, but not all is well")
        assert await browser.text("[data-reasons] li") == "Redis is away"
    await page.wait_for_selector("[data-problem] >> text=Ready")
    base = (await page.get_attribute("script[src*='overview.js']", "src")).replace("overview.js", "formats.js")
    ticks = "async (url) => { const { durations, amounts } = await import(url); return ["
    ticks += "durations([0, 25000, 50000, 75000]), durations([0, 2.5, 5]), amounts([0, 0.05, 0.1], 'USD'),"
    ticks += "amounts([0, 200, 400], 'CNY'), amounts([0, 0.0025, 0.005], 'USD')] }"
    assert await page.evaluate(ticks, base) == [
        ["0", "25 s", "50 s", "75 s"],
        ["0", "2.5 ms", "5.0 ms"],
        ["0", "$0.05", "$0.10"],
        ["0", "¥200", "¥400"],
        ["0", "$0.0025", "$0.0050"],
    ]


async def test_an_answer_streams_as_markdown_and_nothing_of_it_runs(stack: Stack, browser: Browser) -> None:
    page = browser.page
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await page.click("text=Playground")
    await page.fill("#system", "Be brief.")
    await page.fill("#temperature", "0.3")
    await page.fill("#prompt", "Write a list")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(ANSWERED)
    assert "5 prompt + 4 completion tokens" in await browser.text(".turn .meta")
    answer = page.locator(".turn.assistant > .markdown")
    assert await answer.locator("h1").inner_text() == "Title"
    assert await answer.locator("strong").inner_text() == "bold"
    assert await answer.locator("ol li").count() == 2
    assert await answer.locator("td").count() == 2
    assert await answer.locator("td.right").inner_text() == "2"
    assert await answer.locator("li.task").inner_text() == "☑ done"
    assert await answer.locator("pre code").inner_text() == "print('<b>')"
    await answer.locator(".code-block button").click()
    assert await page.evaluate("navigator.clipboard.readText()") == "print('<b>')"
    assert "<script>alert(1)</script>" in await answer.inner_text()
    assert await answer.locator("a").evaluate_all("all => all.map((one) => one.href)") == ["https://example.org/"]
    assert await answer.locator("script, img, b").count() == 0
    reasoning = page.locator(".reasoning")
    assert await reasoning.evaluate("one => one.open") is False
    await reasoning.locator("summary").click()
    assert await reasoning.locator("strong").inner_text() == "a list"
    sent = stack.engine.bodies[-1]
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Write a list"}]
    assert (sent["temperature"], sent["max_tokens"]) == (0.3, 512)
    await page.fill("#prompt", "And again")
    await page.click("#send")
    await page.locator(ANSWERED).nth(1).wait_for()
    assert [one["role"] for one in stack.engine.bodies[-1]["messages"]] == ["system", "user", "assistant", "user"]
    assert all(url.startswith(stack.running.url) for url in requests)
    assert (await stack.row()).key_id == stack.caller.key_id


async def test_an_answer_that_grows_keeps_the_blocks_that_are_whole(stack: Stack, browser: Browser) -> None:
    pieces = ("whole\n\n", "```js\n", "a < b", " && c", "\n```\n")
    stack.engine.script = {"deltas": [{"content": piece} for piece in pieces], "tokens": 5, "gated": True}
    page = browser.page
    await browser.open("/ui/playground")
    await page.fill("#prompt", "Some code")
    await page.click("#send")
    await stack.engine.until_running()
    stack.engine.allow(3)
    await page.wait_for_selector("pre >> text=a < b")  # the fence is still open
    first = await page.query_selector(".turn.assistant .markdown > p")
    stack.engine.allow(2)
    await page.wait_for_selector(ANSWERED)
    assert await page.locator(".turn pre code").inner_text() == "a < b && c"
    assert await first.evaluate("one => one.isConnected")


async def test_a_new_conversation_knows_nothing_of_the_answer_that_it_cut(stack: Stack, browser: Browser) -> None:
    stack.engine.script = {"tokens": 100, "gated": True}
    page = browser.page
    await browser.open("/ui/playground")
    await page.fill("#prompt", "old")
    await page.click("#send")
    await stack.engine.until_running()
    stack.engine.allow(3)
    await page.wait_for_selector(".turn.assistant >> text=w3")
    await page.click("#clear")
    assert await page.locator(".hello").is_visible()
    await stack.engine.until_finished()
    stack.engine.script = {"tokens": 2}
    await page.click("[data-idea] >> nth=0")
    await page.wait_for_selector(ANSWERED)
    (message,) = stack.engine.bodies[-1]["messages"]
    assert message["content"].startswith("Explain quantum computing")
    assert await page.locator(".turn").count() == 2


async def test_a_conversation_outlasts_a_reload_but_no_sign_out(stack: Stack, browser: Browser) -> None:
    page = browser.page
    await browser.open("/ui/playground")
    await page.fill("#system", "Be brief.")
    await page.fill("#prompt", "one")
    await page.click("#send")
    await page.wait_for_selector(ANSWERED)
    stack.engine.script = {"tokens": 100, "gated": True}
    await page.fill("#prompt", "two")
    await page.click("#send")
    await stack.engine.until_running()
    stack.engine.allow(3)
    await page.wait_for_selector(".turn.assistant >> text=w3")
    await page.reload()
    assert await page.locator(".turn").count() == 4
    assert "w3" in await page.locator(".turn.assistant").last.inner_text()
    assert await page.locator(".turn.assistant").first.locator("h1").inner_text() == "Title"
    await stack.engine.until_finished(2)
    row = await stack.row()
    assert (row.status, row.completion_tokens, row.accuracy) == ("cancelled", 3, "exact")
    link = page.locator(".turn.assistant .meta a").last
    assert await link.get_attribute("href") == f"/ui/requests/{row.request_id}"
    stack.engine.script = {"tokens": 2}
    await page.fill("#prompt", "three")
    await page.click("#send")
    await page.locator(ANSWERED).nth(2).wait_for()
    sent = [one["content"] for one in stack.engine.bodies[-1]["messages"]]
    assert (sent[0], sent[1], sent[3], sent[5]) == ("Be brief.", "one", "two", "three")
    await page.click("[aria-label='Sign out']")
    await page.wait_for_selector("#password")
    assert await page.evaluate("sessionStorage.length") == 0


async def test_the_request_can_be_taken_along_as_code(browser: Browser) -> None:
    page = browser.page
    await browser.open("/ui/playground")
    await page.fill("#prompt", 'It\'s "quoted"\nin two lines')
    await page.click("text=As curl")
    curl = await browser.text("#snippet")
    assert "$DEEPSEEK_API_KEY" in curl
    assert "It'\\''s" in curl
    await page.click("dialog.snippet [data-copy]")
    assert await page.evaluate("navigator.clipboard.readText()") == curl
    await page.keyboard.press("Escape")
    await page.click("text=As Python")
    program = await browser.text("#snippet")
    compile(program, "snippet", "exec")
    assert r'"It\'s' in program or '"It\'s \\"quoted\\"\\nin two lines"' in program


async def test_stop_ends_the_answer_at_the_engine_and_it_is_billed(stack: Stack, browser: Browser) -> None:
    stack.engine.script = {"tokens": 100, "gated": True}
    page = browser.page
    await browser.open("/ui/playground")
    await page.fill("#prompt", "Go on for long")
    await page.click("#send")
    await stack.engine.until_running()
    stack.engine.allow(3)
    await page.wait_for_selector(".turn.assistant >> text=w3")
    await page.click("#stop")
    await page.wait_for_selector("text=Stopped")
    await stack.engine.until_finished()
    await until(lambda: stack.gateway.running == 0)
    row = await stack.row()
    assert (row.status, row.end_reason, row.completion_tokens) == ("cancelled", "client_disconnect", 3)
    assert await page.locator("#send").is_visible()


async def test_a_refusal_is_told_in_the_conversation(stack: Stack, browser: Browser) -> None:
    page = browser.page
    await browser.open("/ui/playground")
    await page.select_option("#key", "")
    await page.fill("#pasted", stack.with_key(models=("other",)).key)
    await page.fill("#prompt", "Hello")
    await page.click("#send")
    await page.wait_for_selector(".turn [role=alert]")
    assert "may not use the model" in await browser.text(".turn [role=alert]")
    browser.forgive("403")
    assert await page.locator(".turn.user.dropped").count() == 1
    await page.fill("#pasted", stack.caller.key)
    await page.click("text=Try again")
    await page.wait_for_selector(".turn.assistant .markdown h1")
    assert (await page.locator(".turn").count(), await page.locator(".turn.user.dropped").count()) == (2, 0)
    await page.click("text=Answer again")
    await stack.engine.until_finished(2)
    await page.wait_for_selector(ANSWERED)
    (message,) = stack.engine.bodies[-1]["messages"]
    assert message["content"] == "Hello"


async def test_a_rate_says_when_to_try_again(stack: Stack, browser: Browser) -> None:
    limited = stack.with_key(requests_per_minute=1)
    page = browser.page
    await browser.open("/ui/playground")
    await page.select_option("#key", limited.key_id)
    for number in (1, 2):
        await page.fill("#prompt", "Hello")
        await page.click("#send")
        await page.locator(ANSWERED).nth(number - 1).wait_for()
    browser.forgive("429")
    assert "Too many requests" in await browser.text(".turn [role=alert]")
    again = page.locator(".again")
    assert "Try again in" in await again.inner_text()
    assert await again.is_disabled()


async def test_a_limit_and_a_word_list_are_made_in_the_browser(browser: Browser) -> None:
    page = browser.page
    await page.click("nav >> text=Limits")
    await page.click("text=New limit")
    await page.select_option("#kind", "money_per_day")
    await page.fill("#limit", "much")
    await page.click("text=Create limit")
    assert "12.50" in await browser.text("#limit-fault")
    browser.forgive("422")
    await page.fill("#limit", "12.50")
    await page.fill("#org", "*")
    await page.click("text=Create limit")
    await page.wait_for_selector("td >> text=Money a day")
    await page.click("button:has-text('Remove')")
    await page.click("dialog button[value=yes]")
    await page.wait_for_selector("text=Removed")
    await page.click("nav >> text=Word lists")
    await page.fill("#name", "house")
    await page.set_input_files(
        "#file", {"name": "w.txt", "mimeType": "text/plain", "buffer": "sesame\n禁词\n".encode()}
    )
    await page.check("[name=activate]")
    await page.click("button:has-text('Import')")
    await page.wait_for_selector("text=In force")
    await page.click("text=Try a text")
    await page.fill("#text", "a 禁词 of sesame")
    await page.click("button:has-text('Try')")
    assert await browser.text("mark.block") == "禁词"
    assert "Blocked" in await browser.text("[role=status]")


async def test_everything_can_be_reached_by_keyboard(stack: Stack, browser: Browser) -> None:
    page = browser.page
    await browser.open("/ui/keys/new")
    await page.locator("#name").press("Tab")
    await browser.open("/ui/")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    await browser.open("/ui/usage")
    seen: set[str] = set()
    for _ in range(60):
        await page.keyboard.press("Tab")
        name, ring = await page.evaluate(
            "(() => { const one = document.activeElement;"
            " const name = one.id || one.name || one.textContent.trim() || one.ariaLabel;"
            " return [name, getComputedStyle(one).outlineStyle] })()"
        )
        if await page.evaluate("document.activeElement === document.body"):
            break
        assert ring == "solid", name
        seen.add(name)
    for wanted in ("Overview", "API keys", "Download CSV", "Show", "language", "theme", "since", "by"):
        assert any(wanted in name for name in seen), wanted


async def test_a_form_that_was_sent_too_late_leads_back_to_itself(stack: Stack, browser: Browser) -> None:
    page = browser.page
    await browser.open("/ui/keys/new?org=acme")
    await page.fill("#name", "late")
    await page.context.clear_cookies(name="dsg_session")
    await page.click("text=Create key")
    await page.click("main a:has-text('Sign in')")
    browser.forgive("401")
    await page.fill("#name", "admin")
    await page.fill("#password", PASSWORD)
    await page.click("form.stack button")
    await page.wait_for_url("**/ui/keys/new?org=acme")
    assert await page.input_value("#org") == "acme"


async def test_a_sign_in_at_another_site_leads_into_the_pages(state_dir, chromium) -> None:
    issuer = Issuer()
    async with serving(issuer) as served:
        issuer.url = served.url.replace("127.0.0.1", "localhost")  # another site, for which Strict cookies stay away
        settings = {"oidc_issuer": issuer.url, "oidc_client_id": "gw", "oidc_admins": "ops"}
        async with running_stack(state_dir, **settings) as stack:
            context = await chromium.new_context(locale="en-US")
            browser = Browser(stack, await context.new_page())
            await browser.open("/ui/usage?by=key")
            await browser.page.click("text=Sign in with your organisation")
            await browser.page.wait_for_selector("text=Download CSV")
            assert browser.page.url.endswith("/ui/usage?by=key")
            await browser.page.click("[aria-label='Sign out']")
            await browser.page.wait_for_selector("text=Sign in with your organisation")
            await context.close()
            assert browser.faults == []


NAMED = (
    *("usage", "keys", "keys/new", "people", "limits", "limits/new", "balances", "requests", "words", "words/test"),
    *("review", "audit", "config", "playground", "account"),
)
PAGES = ("/ui/", *(f"/ui/{name}" for name in NAMED))

CONTRAST = """() => {
  const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (colors) => {
    canvas.globalCompositeOperation = "source-over";
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
  };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (one) => {
    const colors = [];
    for (let at = one; at; at = at.parentElement) colors.unshift(getComputedStyle(at).backgroundColor);
    return colors;
  };
  const faults = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim().slice(0, 30);
    if (!text || !one.checkVisibility() || one.closest(".skip, .hidden, option, datalist")) continue;
    const grounds = ground(one);
    const [a, b] = [light(paint([...grounds, getComputedStyle(one).color])), light(paint(grounds))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faults.push(`${ratio.toFixed(2)} ${one.className || one.tagName}: ${text}`);
  }
  return faults;
}"""

NAMES = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a[href]")]
  .filter((one) => one.checkVisibility())
  .filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))
  .map((one) => one.outerHTML.slice(0, 100))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_fit_a_phone_have_contrast_and_names(stack: Stack, chromium, scheme: str) -> None:
    await asyncio.to_thread(Accounts(stack.gateway.store).create, "admin", PASSWORD)
    request_id = (await stack.caller.post()).headers["x-request-id"]
    await stack.running.rows(1)
    org_id = await asyncio.to_thread(stack.running.org, "An organisation with a name that is long")
    people = stack.gateway.people
    for name in ("research and development", "x" * 60):
        await asyncio.to_thread(people.create_team, OPERATOR, TeamDraft(name=name, org_id=org_id))
    await asyncio.to_thread(stack.running.key, tags=("a-tag-that-goes-on-and-on-and-on-and-on",), org_id=org_id)
    details = (f"/ui/requests/{request_id}", f"/ui/keys/{stack.caller.key_id}", f"/ui/people/{org_id}")
    locale = {"light": "zh-CN", "dark": "en-US"}[scheme]
    context = await chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme, locale=locale)
    browser = Browser(stack, await context.new_page())
    page = browser.page
    await browser.sign_in()
    for path in (*PAGES, *details):
        await browser.open(path)
        width = await page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width[0] <= width[1], path
        await page.click(".menu-button")
        assert await page.locator("#menu nav a").first.is_visible()
        assert await page.evaluate(CONTRAST) == [], path
        assert await page.evaluate(NAMES) == [], path
        assert re.match("zh|en", await page.evaluate("document.documentElement.lang"))
    await context.close()
    assert browser.faults == []
