"""Who gets in with a name and a password, what that costs, and what a guesser learns."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as some
from webclient import GET, said
from webguard import PASSWORD, ask, basic, guarded, hashed, users

from appliance_agent import basic_auth
from appliance_agent.basic_auth import BasicAuth, Verdict
from appliance_agent.front import Front


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with guarded(tmp_path / "web.yml", users(prometheus=PASSWORD, grafana="other")) as front:
        yield front


class Checks:
    """Counts what bcrypt is asked, and remembers the costs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[int] = []
        self.at_once = self.most_at_once = 0
        self._check = bcrypt.checkpw
        self._lock = threading.Lock()
        monkeypatch.setattr(bcrypt, "checkpw", self)

    def __call__(self, password: bytes, digest: bytes) -> bool:
        with self._lock:
            self.costs.append(int(digest[4:6]))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self._check(password, digest)
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    return Checks(monkeypatch)


@pytest.mark.parametrize("path", ["/", "/metrics", "/status", "/-/healthy", "/-/ready", "/sd", "/nope"])
def test_every_page_wants_the_password(front: Front, path: str) -> None:
    without = ask(front, path)

    assert without.status == 401
    assert without.headers["www-authenticate"] == 'Basic realm="ollama-agent", charset="UTF-8"'
    assert without.body == b"name and password, please\n"
    assert ask(front, path, Authorization=basic("prometheus")).status in (200, 404)


@pytest.mark.parametrize(
    "words",
    [
        basic("prometheus", "wrong"),
        basic("prometheus", ""),
        basic("prometheus", PASSWORD + "x"),
        basic("Prometheus"),
        basic("grafana"),
        basic(""),
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"prometheus").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\x00").decode(),
        "Bearer " + basic("prometheus").partition(" ")[2],
        basic("prometheus") + ", " + basic("prometheus"),
    ],
)
def test_what_is_not_quite_right_does_not_get_in(front: Front, words: str) -> None:
    assert ask(front, Authorization=words).status == 401


def test_two_headers_do_not_get_in_and_the_scheme_has_no_case(front: Front) -> None:
    good = basic("prometheus").encode()
    twice = GET.replace(b"\r\n\r\n", b"\r\nAuthorization: " + good + b"\r\nAuthorization: " + good + b"\r\n")
    lower = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\nauthorization: " + good.replace(b"Basic", b"bAsIc"))

    assert said(front, twice + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 401 ")
    assert said(front, lower + b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_good_password_is_checked_once(front: Front, checks: Checks) -> None:
    answers = [ask(front, Authorization=basic("prometheus")).status for _ in range(5)]

    assert answers == [200] * 5
    assert len(checks.costs) == 1


def test_a_wrong_password_is_never_remembered_as_a_good_one(front: Front, checks: Checks) -> None:
    words = ("wrong", PASSWORD, "wrong", PASSWORD, "wrong")

    assert [ask(front, Authorization=basic("prometheus", word)).status for word in words] == [401, 200, 401, 200, 401]
    assert len(checks.costs) == 4


def test_unknown_users_cost_as_much_as_known_ones(checks: Checks) -> None:
    auth = BasicAuth({"a": hashed(cost=5), "b": hashed(cost=6)})
    for name in ("nobody", "b"):
        assert auth.judge(basic(name, "wrong")) is Verdict.UNKNOWN

    assert checks.costs == [6, 6]


def test_the_decoy_opens_for_no_one() -> None:
    auth = BasicAuth({"a": hashed("x", cost=4)})

    assert {auth.judge(basic("nobody", word)) for word in ("", "x", "fakepassword", "nobody")} == {Verdict.UNKNOWN}


def test_checks_come_one_at_a_time_and_guessers_wait(checks: Checks) -> None:
    auth = BasicAuth({"a": hashed(cost=6)})
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda number: auth.judge(basic("a", str(number))), range(24)))

    assert set(verdicts) == {Verdict.UNKNOWN}
    assert checks.most_at_once == 1


def test_whoever_is_known_does_not_wait_for_guessers(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = BasicAuth({"a": hashed()})
    assert auth.judge(basic("a")) is Verdict.WELCOME
    monkeypatch.setattr(basic_auth, "_WAIT_S", 0.05)
    entered, leave = threading.Event(), threading.Event()

    def hangs(_password: bytes, _digest: bytes) -> bool:
        entered.set()
        return not leave.wait(20)

    monkeypatch.setattr(bcrypt, "checkpw", hangs)
    guesser = threading.Thread(target=auth.judge, args=(basic("a", "guess"),))
    guesser.start()
    try:
        entered.wait(20)

        assert auth.judge(basic("a")) is Verdict.WELCOME
        assert auth.judge(basic("a", "another guess")) is Verdict.BUSY
    finally:
        leave.set()
        guesser.join()


def test_a_user_that_is_taken_out_is_out_at_once(front: Front, tmp_path: Path) -> None:
    before = ask(front, Authorization=basic("prometheus")).status
    (tmp_path / "new").write_text(users(grafana="other"))
    (tmp_path / "new").replace(tmp_path / "web.yml")

    assert (before, ask(front, Authorization=basic("prometheus")).status) == (200, 401)


def test_a_password_that_changed_is_the_old_one_no_more(front: Front, tmp_path: Path) -> None:
    before = ask(front, Authorization=basic("prometheus")).status
    (tmp_path / "new").write_text(users(prometheus="new"))
    (tmp_path / "new").replace(tmp_path / "web.yml")

    assert before == 200
    assert ask(front, Authorization=basic("prometheus")).status == 401
    assert ask(front, Authorization=basic("prometheus", "new")).status == 200


def test_a_change_elsewhere_in_the_file_does_not_cost_a_check(front: Front, tmp_path: Path, checks: Checks) -> None:
    ask(front, Authorization=basic("prometheus"))
    (tmp_path / "new").write_text((tmp_path / "web.yml").read_text() + "# a word\n")
    (tmp_path / "new").replace(tmp_path / "web.yml")
    ask(front, Authorization=basic("prometheus"))

    assert len(checks.costs) == 1


@pytest.mark.parametrize("kind", ["2a", "2b", "2y"])
def test_hashes_of_other_tools_are_understood(kind: str) -> None:
    auth = BasicAuth({"a": hashed().replace("$2b$", f"${kind}$")})

    assert auth.judge(basic("a")) is Verdict.WELCOME


def test_of_a_long_password_bcrypt_looks_at_72_bytes() -> None:
    auth = BasicAuth({"a": hashed("x" * 72)})

    assert auth.judge(basic("a", "x" * 100)) is Verdict.WELCOME
    assert auth.judge(basic("a", "x" * 71)) is Verdict.UNKNOWN


@given(some.text(max_size=80))
def test_no_header_is_a_bug(words: str) -> None:
    auth = BasicAuth({"a": hashed()})

    assert auth.judge(words) is Verdict.UNKNOWN
    assert auth.judge("Basic " + base64.b64encode(words.encode("utf-8", "replace")).decode()) is Verdict.UNKNOWN
