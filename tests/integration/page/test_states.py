"""Keys, limits, servers that are not ready or gone, and servers behind a proxy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx2
from playwright.sync_api import Route, expect

from tests.integration.page.conftest import Open, embed
from tests.integration.page.served import Served, serve

REFUSAL = {"error": {"message": "This key is no more.", "type": "invalid_request_error"}}
PRESSED = ("401", "403", "429", "503", "ERR_")


def key_file(folder: Path, **keys: str) -> str:
    """A file of keys: the name, which is the key itself, and more fields of each."""
    lines = [
        f'{name} = {{ sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"{fields} }}'
        for name, fields in keys.items()
    ]
    path = folder / "keys.toml"
    path.write_text("\n".join(lines))
    return str(path)


def test_keys(store: dict[str, str], open_page: Open) -> None:
    """A wrong key is refused in words, a good one is kept for the tab alone, and forgotten."""
    with serve(store, MATRYO_API_KEYS="good-key") as keyed:
        page = open_page(f"{keyed.url}/", expect=PRESSED)
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        expect(page.locator("#tabs")).to_be_hidden()
        for wrong, said in (("wrong-key", "Incorrect API key"), ("ключ", "outside of ASCII")):
            field.fill(wrong)
            page.get_by_role("button", name="Use this key").click()
            expect(page.locator("#key-fault")).to_contain_text(said)
        field.fill("good-key")
        field.press("Enter")
        expect(page.locator("#tabs")).to_be_visible()
        embed(page, "apple")
        code = page.get_by_role("region", name="The request as code")
        expect(code).to_contain_text("Authorization: Bearer YOUR_KEY")
        assert "good-key" not in page.content()
        assert "good-key" not in page.url
        assert page.evaluate("Object.keys(localStorage).length") == 0
        assert page.context.cookies() == []
        page.reload()
        expect(page.locator("#tabs")).to_be_visible()
        page.get_by_role("button", name="Forget the key").click()
        expect(field).to_be_visible()
        assert page.evaluate("Object.keys(sessionStorage).length") == 0


def test_a_key_that_ends(store: dict[str, str], open_page: Open, tmp_path: Path) -> None:
    """A key that is taken away while the page is open is asked for again, and the page goes on."""
    file = key_file(tmp_path, first="", second="")
    with serve(store, MATRYO_KEYS_FILE=file) as keyed:
        page = open_page(f"{keyed.url}/", expect=PRESSED)
        page.get_by_label("API key").fill("first")
        page.keyboard.press("Enter")
        embed(page, "apple")
        page.route("**/v1/embeddings", lambda route: route.fulfill(status=401, json=REFUSAL))
        page.get_by_role("button", name="Embed", exact=True).click()
        expect(page.locator("#key-fault")).to_have_text("This key is no more.")
        page.unroute("**/v1/embeddings")
        page.get_by_label("API key").fill("second")
        page.keyboard.press("Enter")
        expect(page.get_by_role("tab", name="Try")).to_be_focused()
        expect(page.locator(".fault:visible")).to_have_count(0)
        embed(page, "apple")


def test_rights(store: dict[str, str], open_page: Open, tmp_path: Path) -> None:
    """A key sees its own models; one that may use no other is not shown the default's tokens."""
    file = key_file(tmp_path, few=', models = ["other"]')
    with serve(store, MATRYO_KEYS_FILE=file) as keyed:
        page = open_page(f"{keyed.url}/", expect=PRESSED)
        page.get_by_label("API key").fill("few")
        page.keyboard.press("Enter")
        expect(page.locator("#model option")).to_have_text(["other"])
        embed(page, "apple")
        expect(page.locator("#panel-try")).to_contain_text("No tokens to show: ")
        expect(page.locator("#vectors")).to_be_visible()


def test_a_limit(store: dict[str, str], open_page: Open, tmp_path: Path) -> None:
    """A refusal for now is waited for, in words; then the answer comes."""
    file = key_file(tmp_path, slow=", requests_per_minute = 30")
    with serve(store, MATRYO_KEYS_FILE=file) as keyed:
        page = open_page(f"{keyed.url}/", expect=PRESSED)
        page.get_by_label("API key").fill("slow")
        page.keyboard.press("Enter")
        page.locator("#tabs:not([hidden])").wait_for()
        used = {"authorization": "Bearer slow"}
        while True:
            body = {"input": "a"}
            answer = httpx2.post(f"{keyed.url}/v1/embeddings", json=body, headers=used)
            if answer.status_code == 429:
                break
        page.get_by_role("tab", name="Try").click()
        page.get_by_role("button", name="Embed", exact=True).click()
        expect(page.locator("#banner")).to_contain_text("Trying again")
        page.locator("#vectors").wait_for()
        expect(page.locator("#banner")).to_be_hidden()


def test_metrics_key(store: dict[str, str], open_page: Open) -> None:
    """Metrics with a key of their own are asked for in Now."""
    with serve(store, MATRYO_METRICS_KEY="metrics-key") as keyed:
        page = open_page(f"{keyed.url}/", expect=PRESSED)
        panel = page.locator("#panel-now")
        for key, fault in (("wrong", True), ("ключ", True), ("metrics-key", False)):
            panel.get_by_label("Key of the metrics").fill(key)
            panel.get_by_role("button", name="Use this key").click()
            expect(panel.locator(".fault")).to_have_count(int(fault))
        expect(panel.locator(".value").first).not_to_have_text("–")


def test_metrics_elsewhere(store: dict[str, str], open_page: Open) -> None:
    """Metrics on another port are not reached, and the page says so."""
    with serve(store, MATRYO_METRICS_PORT="0") as started:
        page = open_page(f"{started.url}/")
        expect(page.locator("#panel-now")).to_contain_text("MATRYO_METRICS_PORT")
        page.close()  # before its server ends


def test_metrics_kept_away(server: Served, open_page: Open) -> None:
    """A proxy that answers 404 for the metrics is not asked again."""
    page = open_page(f"{server.url}/#try", expect=("404",))
    asked: list[int] = []

    def refuse(route: Route) -> None:
        asked.append(1)
        route.fulfill(status=404, body="not here")

    page.route("**/metrics", refuse)
    page.get_by_role("tab", name="Now").click()
    expect(page.locator("#panel-now")).to_contain_text("keeps /metrics away")
    page.wait_for_timeout(2500)
    assert len(asked) == 1


def test_load(server: Served, open_page: Open) -> None:
    """Requests between two looks are shown as rates, and make a latency."""
    page = open_page(f"{server.url}/")
    values = page.locator("#panel-now .value")
    expect(values.first).to_have_text("0.00")
    with httpx2.Client(base_url=server.url) as client:
        for _ in range(40):
            client.post("/v1/embeddings", json={"input": "a few words"}).raise_for_status()
    expect(page.locator("#panel-now")).to_contain_text("40 requests")
    expect(values.nth(3)).not_to_have_text("–")


def test_gone_and_back(store: dict[str, str], open_page: Open) -> None:
    """A server that is gone is missed, and found again, with what it then serves."""
    with serve(store) as first:
        page = open_page(f"{first.url}/", expect=PRESSED)
        expect(page.locator("#model option")).to_have_count(2)
        page.wait_for_load_state("networkidle")  # the scripts of all tabs have come
        port = first.url.rpartition(":")[2]
        first.stop()
        expect(page.get_by_role("status")).to_have_text("No answer")
        expect(page.locator("#banner")).to_contain_text("does not answer")
        page.get_by_role("tab", name="Try").click()
        page.get_by_role("button", name="Embed", exact=True).click()
        expect(page.locator("#panel-try .fault")).to_contain_text("does not answer")
        with serve(store | {"MATRYO_MODEL": "tiny"}, "--port", port):
            expect(page.get_by_role("status")).to_have_text("Ready")
            expect(page.locator("#model option")).to_have_count(1)
            expect(page.locator("#banner")).to_contain_text("other models")
            embed(page, "apple")


def test_the_same_again(store: dict[str, str], open_page: Open) -> None:
    """A server that comes back with the same models is used as before."""
    with serve(store) as first:
        page = open_page(f"{first.url}/", expect=PRESSED)
        page.wait_for_load_state("networkidle")
        port = first.url.rpartition(":")[2]
        first.stop()
        expect(page.get_by_role("status")).to_have_text("No answer")
        with serve(store, "--port", port):
            expect(page.get_by_role("status")).to_have_text("Ready")
            expect(page.locator("#banner")).to_be_hidden()
            embed(page, "apple")
            expect(page.locator("#panel-try")).to_contain_text("As the model reads them")
            page.close()  # before its server ends


def test_other_vectors_unseen(server: Served, open_page: Open) -> None:
    """Vectors of another model under the same name are refused, and the page learns of it."""
    facts = httpx2.get(f"{server.url}/v1/models/tiny").json()
    page = open_page(f"{server.url}/", expect=("412",))
    old = facts | {"fingerprint": "tiny/fp32/0123456789abcdef"}
    for tab, button in (
        ("Try", "Embed"),
        ("Choose", "Take the sample"),
        ("Map", "Take the sample"),
    ):
        page.route("**/v1/models/tiny", lambda route: route.fulfill(json=old))
        page.goto(f"{server.url}/#{tab.lower()}")
        page.reload()
        expect(page.locator("#fingerprint")).to_have_text("01234567…")
        page.unroute("**/v1/models/tiny")
        panel = page.locator(f"#panel-{tab.lower()}")
        panel.get_by_role("button", name=button, exact=True).click()
        expect(panel.get_by_role("alert")).to_contain_text("fingerprint")
        expect(page.locator("#banner")).to_contain_text("the same with other vectors")
        expect(page.locator("#fingerprint")).not_to_have_text("01234567…")
    embed(page, "apple")


def test_another_model_unseen(store: dict[str, str], open_page: Open) -> None:
    """A server that starts anew between two looks shows its new models after the first refusal."""
    with serve(store | {"MATRYO_MODEL": "tiny"}) as first:
        page = open_page(f"{first.url}/", expect=("404",))
        page.route("**/readyz", lambda route: route.fulfill(json={"status": "ok"}))
        page.route("**/metrics", lambda route: route.fulfill(body=""))
        page.wait_for_load_state("networkidle")
        port = first.url.rpartition(":")[2]
        first.stop()
        with serve(store | {"MATRYO_MODEL": "other"}, "--port", port):
            page.get_by_role("tab", name="Try").click()
            page.get_by_role("button", name="Embed", exact=True).click()
            expect(page.locator("#panel-try .fault")).to_contain_text("`tiny` does not exist")
            expect(page.locator("#model option")).to_have_text(["other"])
            embed(page, "apple")
            page.close()  # before its server ends


def test_gone_during_a_wait(server: Served, open_page: Open) -> None:
    """A server that goes away while a refusal is waited for is missed as any other."""
    page = open_page(f"{server.url}/#try", expect=PRESSED)
    slow = {"error": {"message": "<b>Too many</b>"}}
    page.route(
        "**/v1/embeddings",
        lambda route: route.fulfill(status=429, json=slow, headers={"retry-after": "30"}),
    )
    page.get_by_role("button", name="Embed", exact=True).click()
    expect(page.locator("#banner")).to_contain_text("<b>Too many</b> Trying again in")
    page.route("**/readyz", lambda route: route.abort())
    expect(page.locator("#banner")).to_contain_text("does not answer")
    page.wait_for_timeout(600)  # two steps of a countdown


def test_a_login_of_a_proxy(server: Served, open_page: Open) -> None:
    """An answer that is a proxy's page is told, and the page goes on once the API answers."""
    page = open_page(f"{server.url}/")
    page.route("**/v1/models", lambda route: route.fulfill(body="<h1>Log in</h1>"))
    page.reload()
    expect(page.locator("#banner")).to_contain_text("A proxy before the server")
    page.unroute("**/v1/models")
    expect(page.locator("#tabs")).to_be_visible()


def test_not_ready(server: Served, open_page: Open) -> None:
    """A server that is not ready says why, and the page shows when it is."""

    def unready(route: Route) -> None:
        body = '{"status": "unavailable", "reason": "tiny has not run"}'
        route.fulfill(status=503, content_type="application/json", body=body)

    page = open_page(f"{server.url}/", expect=PRESSED)
    page.route("**/readyz", unready)
    expect(page.get_by_role("status")).to_have_text("Not ready: tiny has not run")
    page.unroute("**/readyz")
    expect(page.get_by_role("status")).to_have_text("Ready")


def test_root_path(store: dict[str, str], open_page: Open) -> None:
    """Below a proxy's prefix, page, API and copied code use the prefix."""
    with serve(store, MATRYO_ROOT_PATH="/team/emb") as started:
        for path in ("/team/emb/", "/team/emb"):
            page = open_page(started.url + path)
            embed(page, "apple")
            code = page.get_by_role("region", name="The request as code")
            expect(code).to_contain_text("/team/emb/v1/embeddings")
            page.get_by_role("link", name="API").click()
            assert page.url.endswith("/team/emb/docs")
            page.get_by_role("link", name="page").click()
            expect(page.get_by_role("status")).to_have_text("Ready")
            page.close()  # before its server ends


def test_off(store: dict[str, str]) -> None:
    """`MATRYO_PAGE=false` takes the page away."""
    with serve(store, MATRYO_PAGE="false") as started:
        for path in ("/", "/page/app.js"):
            assert httpx2.get(started.url + path).status_code == 404
