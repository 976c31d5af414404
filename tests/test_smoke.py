"""The smoke test's question, asked of the stand-in."""

from pathlib import Path

import pytest
from scriptedstore import lay_scripted_models
from standinserver import OllamaServer

from appliance_builder.http import Http
from appliance_builder.network import Network
from appliance_builder.network_errors import Fault, NetworkError
from appliance_builder.smoke import Spoken, ask, load_s, wait_until_up

MODEL = "deepseek-r1:32b"


@pytest.mark.parametrize(
    ("weights_bytes", "seconds"),
    [(1_000_000_000, 600), (43_000_000_000, 600), (60_000_000_000, 600), (404_000_000_000, 4040)],
)
def test_a_large_model_gets_the_time_that_a_slow_disk_needs(weights_bytes: int, seconds: float) -> None:
    assert load_s(weights_bytes) == seconds


def asked(tmp_path: Path, *, silent_s: float) -> Spoken:
    lay_scripted_models(tmp_path / "store", tmp_path)
    slow = {"OLLAMA_NOPRUNE": "1", "STANDIN_LOAD_S": "2", "STANDIN_TOKEN_S": "0.005"}
    with (
        OllamaServer(tmp_path / "store", tmp_path / "home", slow) as server,
        Http(Network(), environ={}) as http,
    ):
        url = f"http://127.0.0.1:{server.port}"
        wait_until_up(http, url, alive=lambda: True)
        return ask(http, url, model=MODEL, question="Why?", told=lambda _thinking, _content: None, silent_s=silent_s)


def test_a_model_that_loads_in_time_answers(tmp_path: Path) -> None:
    spoken = asked(tmp_path, silent_s=300)

    assert spoken.thinking + spoken.content


def test_a_model_that_does_not_load_in_time_is_told_as_silence(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"streaming a chat: .* was silent for 0 s") as caught:
        asked(tmp_path, silent_s=0.3)

    assert caught.value.fault is Fault.TIMEOUT
