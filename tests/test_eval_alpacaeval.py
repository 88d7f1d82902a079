"""AlpacaEval: alpaca_eval's comparison with a judge. The judge of the whole runs is a real vLLM server."""

import http.server
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from byte_models import CHAT, byte_llama, vocabulary

from eval import alpacaeval
from eval.scoring import judge, winrate
from eval.scoring.judge import Judge
from eval.scoring.winrate import LENGTH_CONTROLLED, PLAIN
from impart.errors import InputError

pytest.importorskip("alpaca_eval", reason="the judge is asked by the package alpaca_eval")
ITEMS = [
    {"instruction": f"Say {word}.", "output": f"{word}!", "generator": "reference", "dataset": "x"}
    for word in ("yes", "no", "maybe", "never", "always", "often")
]


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "references.json"
    path.write_text(json.dumps(ITEMS))
    return path


@pytest.fixture
def answers(tmp_path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": str(index), "completion": f"{index} is my answer."}) + "\n" for index in range(len(ITEMS))
        )
    )
    return path


@pytest.fixture
def server():
    """An endpoint that answers every request with `server.status` and `server.body`, to see what is made of it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = self.server.body(len(self.server.requests)) if callable(self.server.body) else self.server.body
            body = json.dumps(body).encode()
            self.send_response(self.server.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.requests, listening.status, listening.body = [], 200, {}
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    listening.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    yield listening
    listening.shutdown()
    listening.server_close()


def reply(*tokens: str) -> dict:
    """A chat completion of one token, with these as the likeliest ones."""
    top = [{"token": token, "logprob": -float(rank), "bytes": None} for rank, token in enumerate(tokens)]
    content = [{**top[0], "top_logprobs": top}] if tokens else None
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "j",
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": "m"},
                "logprobs": {"content": content} if content else None,
            }
        ],
    }


def test_no_key_is_said_first(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match="no key: set OPENAI_API_KEY.*--judge_url"):
        judge.check_judge(Judge("gpt-4o-2024-08-06"))


def test_an_endpoint_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=f"127.0.0.1:{port}/v1 cannot be reached"):
        judge.check_judge(Judge("j", f"http://127.0.0.1:{port}/v1"))


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"error": {"message": "bad key"}}, "refuses the key in OPENAI_API_KEY.*bad key"),
        (404, {"error": {"message": "no such model"}}, "does not exist.*no such model.*--judge_model"),
        (400, {"error": {"message": "too many logprobs"}}, "refuses the request.*too many logprobs.*--max-logprobs"),
        (200, reply(), "returns no token probabilities"),
    ],
)
def test_a_judge_that_cannot_judge(server, status, body, message):
    server.status, server.body = status, body
    with pytest.raises(InputError, match=message):
        judge.check_judge(Judge("j", server.url))


def test_an_option_that_does_not_exist(server):
    server.body = reply("m", "M")
    with pytest.raises(InputError, match="refuses the request.*--judge_options"):
        judge.check_judge(Judge("j", server.url, {"no_such_option": 1}))


def test_the_request_is_the_one_that_gives_verdicts(server):
    server.body = reply("M", "m")
    judge.check_judge(Judge("some-instruct-model", server.url, {"top_logprobs": 7}))
    [request] = server.requests
    assert request["model"] == "some-instruct-model" and request["top_logprobs"] == 7
    assert request["logprobs"] is True and request["max_tokens"] == 1


def test_a_judge_that_says_neither_m_nor_M(server, tmp_path, caplog):
    server.body = reply("perhaps", "so")
    judge.check_judge(Judge("j", server.url))
    assert "neither m nor M" in caplog.text
    with pytest.raises(InputError, match="no readable verdict.*2 comparisons.*the answers are kept"):
        winrate.compare(
            Judge("j", server.url),
            ITEMS[:2],
            [{**item, "output": "other"} for item in ITEMS[:2]],
            "me",
            tmp_path / "verdicts",
            PLAIN,
        )
    assert not (tmp_path / "verdicts").exists()  # so that a better judge is asked again


def compared(server, tmp_path: Path, **changes):
    outputs = [{"instruction": item["instruction"], "output": f"my {index}"} for index, item in enumerate(ITEMS)]
    return winrate.compare(Judge("j", server.url, **changes), outputs, ITEMS, "me", tmp_path / "verdicts", PLAIN)


def test_a_verdict_is_a_probability_and_the_order_is_shuffled(server, tmp_path):
    """A judge that always likes the first of the two prefers each side about half the time: m means output 1."""
    server.body = reply("m", "M")  # log-probabilities 0 and -1
    metrics, annotations = compared(server, tmp_path)
    ratio = 1 / (1 + 2.718281828**-1)
    assert {round(row["preference"], 4) for row in annotations} <= {round(1 + ratio, 4), round(2 - ratio, 4)}
    assert metrics["win_rate"] == pytest.approx(100 * sum(row["preference"] - 1 for row in annotations) / 6)
    assert [row["instruction"] for row in annotations] == [item["instruction"] for item in ITEMS]


def test_stored_verdicts_are_used_again_for_the_same_judge_only(server, tmp_path):
    server.body = reply("m")  # whole numbers, which come back from the file as such
    first, _ = compared(server, tmp_path)
    asked = len(server.requests)
    again, _ = compared(server, tmp_path)
    assert again["win_rate"] == first["win_rate"] and len(server.requests) == asked == 6
    compared(server, tmp_path, options={"top_logprobs": 3})
    assert len(server.requests) == 12


def test_unread_verdicts_are_asked_for_again(server, tmp_path):
    path = tmp_path / "verdicts"
    path.write_text(json.dumps([{"preference": 1.25}, {"preference": -1}, {"preference": None}]))
    assert winrate.forget_unread(path) == 1 and json.loads(path.read_text()) == [{"preference": 1.25}]
    path.write_text(json.dumps([{"preference": -1}]))
    assert winrate.forget_unread(path) == 0 and not path.exists()


def test_a_judge_that_breaks_off(server, tmp_path):
    server.status, server.body = 500, {"error": {"message": "out of order"}}
    with pytest.raises(InputError, match="the judge 'j' failed.*out of order.*run the same command again"):
        compared(server, tmp_path)


def test_the_key_stays_off_the_disk(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with judge.annotator_folder(Judge("j", "http://x/v1")) as folder:
        files = list(Path(folder).iterdir())
        assert len(files) == 2 and not any("sk-secret" in file.read_text() for file in files)
    assert not Path(folder).exists()


def test_the_metric_that_can_be_computed(tmp_path, monkeypatch):
    gamed = tmp_path / "df_gamed.csv"
    with pytest.raises(InputError, match="--df_gamed .* does not exist"):
        winrate.chosen_metric(LENGTH_CONTROLLED, True, gamed)
    gamed.write_text("")
    assert winrate.chosen_metric("auto", True, gamed) == LENGTH_CONTROLLED
    assert winrate.chosen_metric(PLAIN, True, gamed) == PLAIN
    assert winrate.chosen_metric("auto", False, gamed) == PLAIN
    with pytest.raises(InputError, match="805 official instructions by position"):
        winrate.chosen_metric(LENGTH_CONTROLLED, False, gamed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert winrate.chosen_metric("auto", True, None) == PLAIN
    with pytest.raises(InputError, match="the hub does not give tatsu-lab/alpaca_eval/df_gamed.csv .*--df_gamed FILE"):
        winrate.chosen_metric(LENGTH_CONTROLLED, True, None)


def test_the_805_instructions(tmp_path):
    folder = os.environ.get("IMPART_DATA")
    if not folder:
        pytest.skip("IMPART_DATA is unset: no alpaca_eval_gpt4_1106_preview.json to test with")

    def official(*flags):
        given = alpacaeval.parse(alpacaeval.parser(), ["model", "llama2", *flags])
        items, is_official = alpacaeval.reference_answers(alpacaeval.options_from(given))
        return len(items.items), is_official

    assert official() == (805, True)
    assert official("--limit", "7") == (7, True)
    assert official("--subset", "3,5") == (2, False)  # their positions are not those that df_gamed.csv counts


def gamed_csv(path: Path) -> Path:
    """A file of the form of df_gamed.csv: verdicts on two gamed baselines, here drawn at random."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    difficulty, frames = random.normal(size=805), []
    for model, shorter in (("concise", 1.0), ("verbose", -1.0)):  # delta: by how much the reference is longer
        delta = shorter + 0.3 * random.normal(size=805)
        preference = 1 / (1 + np.exp(0.9 * np.tanh(delta) - 0.2 * difficulty))
        frames.append(
            pd.DataFrame(
                {
                    "model": model,
                    "preference": preference,
                    "index": range(805),
                    "std_delta_len": delta,
                    "instruction_difficulty": difficulty,
                    "not_gamed_baseline": False,
                }
            )
        )
    pd.concat(frames).to_csv(path, index=False)
    return path


def test_length_control_takes_the_length_out(server, tmp_path):
    """A judge that looks at nothing but the length: what it gives away by length, length control takes back."""
    lengths = [40 + index for index in range(80)]  # against 50 everywhere: mostly longer
    references = [{"instruction": f"Say {index}.", "output": "x" * 50, "generator": "reference"} for index in range(80)]
    outputs = [
        {"instruction": item["instruction"], "output": "y" * length}
        for item, length in zip(references, lengths, strict=True)
    ]
    rows = [
        {
            "instruction": item["instruction"],
            "output_1": item["output"],
            "output_2": output["output"],
            "annotator": Judge("j", server.url).name,
            "preference": 1 + 1 / (1 + math.exp((50 - length) / 20)),
        }
        for item, output, length in zip(references, outputs, lengths, strict=True)
    ]
    (tmp_path / "verdicts").write_text(json.dumps(rows))
    metrics, _ = winrate.compare(
        Judge("j", server.url),
        outputs,
        references,
        "me",
        tmp_path / "verdicts",
        LENGTH_CONTROLLED,
        gamed_csv(tmp_path / "df_gamed.csv"),
    )
    assert metrics["win_rate"] == pytest.approx(100 * sum(row["preference"] - 1 for row in rows) / 80)
    assert metrics["win_rate"] > 75 and not server.requests
    assert abs(metrics["length_controlled_winrate"] - 50) < metrics["win_rate"] - 50 - 10


def test_bad_input(called, data, tmp_path, server):
    server.body = reply("m", "M")
    command = [str(tmp_path), "llama2", "--data", data, "--judge_url", server.url]
    for flags, message in (
        [["--judge_options", "[1"], "not a JSON mapping"],
        [["--judge_options", "[1]"], "not a JSON mapping"],
        [["--chat_template", "mistral"], "differ; give one of them"],
        [["--data", tmp_path / "none.json"], "no such file"],
    ):
        ended = called(alpacaeval.main, *command, *flags)
        assert ended.code == 2 and message in ended.err, ended.err
    assert (
        "'llama9' is no model's folder or hub id, and none of auto"
        in called(alpacaeval.main, "model", "llama9", *command[2:]).err
    )
    data.write_text(json.dumps([{"instruction": "x", "generator": "y"}]))
    assert "item 1: field 'output' is missing" in called(alpacaeval.main, *command).err
    data.write_text(json.dumps([ITEMS[0], ITEMS[0]]))
    assert "an instruction occurs twice" in called(alpacaeval.main, *command).err


def test_a_file_of_answers_is_scored(called, data, answers, server, tmp_path):
    server.body = reply("m", "M")
    ended = called(
        alpacaeval.main,
        "--rescore",
        answers,
        "--data",
        data,
        "--judge_url",
        server.url,
        "--judge_model",
        "j",
        "--chat_template",
        "llama2",
        "--results_dir",
        tmp_path / "results",
    )
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "results/mine/alpacaeval_plain/0.json").read_text())
    assert result["n"] == result["verdicts"] == 6 and result["settings"]["judge"]["model"] == "j"
    assert result["score"] == pytest.approx(result["metrics"]["win_rate"]) and result["stderr"] > 0


NO_VERDICT = {
    "no logprobs": reply(),
    "no tokens": {**reply("m"), "choices": [{**reply("m")["choices"][0], "logprobs": {"content": []}}]},
    "neither": reply("x", "y"),
    "no choice": {**reply("m"), "choices": []},  # at which the package stops, and keeps none of its 32
    "null choices": {**reply("m"), "choices": None},
}


@pytest.mark.parametrize("what", NO_VERDICT)
def test_a_judge_that_stops_giving_verdicts(called, data, answers, server, tmp_path, what):
    """Not the score of those few that could be read, as if it were one of all; they are kept."""
    command = ("--rescore", answers, "--data", data, "--judge_url", server.url, "--judge_model", "j")
    command += ("--chat_template", "llama2", "--results_dir", tmp_path / "results")
    server.body = lambda asked: reply("m", "M") if asked <= 3 else NO_VERDICT[what]
    ended = called(alpacaeval.main, *command)
    lost = "choice" in what
    assert ended.code == 2 and "Traceback" not in ended.err, ended.err
    assert ("gave no readable verdict" if lost else "4 of 6 verdicts of the judge 'j' cannot be read") in ended.err
    assert not list((tmp_path / "results").rglob("0.json"))
    asked = len(server.requests)
    server.body = reply("m", "M")
    assert called(alpacaeval.main, *command).code == 0
    assert len(server.requests) - asked == 1 + (6 if lost else 4)  # the check, and the verdicts not read


@pytest.fixture(scope="module")
def vllm_judge(tmp_path_factory):
    """A real vLLM server with an untrained model, which logit_bias makes answer with m or M."""
    pytest.importorskip("vllm")
    model = byte_llama(tmp_path_factory.mktemp("judge"), seed=1, positions=65536, chat=CHAT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    log = (tmp_path_factory.mktemp("log") / "server.log").open("w")
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("vllm"),
            "serve",
            model,
            "--served-model-name",
            "tiny-judge",
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
            "--enforce-eager",
        ],
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(600):
            assert process.poll() is None, Path(log.name).read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=300)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_whole_run_with_vllm_on_both_sides(vllm_judge, data, tmp_path, script):
    model, letters = byte_llama(tmp_path / "model"), vocabulary()
    bias = json.dumps({"logit_bias": {str(letters["m"]): 100, str(letters["M"]): 100}})
    judge = ("--judge_url", vllm_judge, "--judge_model", "tiny-judge", "--judge_options", bias)
    flags = ("--data", data, "--limit", 4, *judge, "--max_model_len", 128)
    ended = script("eval/scripts/alpacaeval.sh", model, "llama2", *flags, cwd=tmp_path)
    assert ended.code == 0, ended.err[-3000:]
    assert "alpacaeval_plain  model" in ended.out
    result = json.loads((tmp_path / "results/model/alpacaeval_plain/0.json").read_text())
    assert result["n"] == result["verdicts"] == 4 and result["settings"]["template"] == "llama2"


@pytest.mark.vllm
@pytest.mark.slow
def test_a_vllm_judge_that_allows_too_few_logprobs(vllm_judge):
    with pytest.raises(InputError, match="--max-logprobs"):
        judge.check_judge(Judge("tiny-judge", vllm_judge, {"top_logprobs": 50}))
    with pytest.raises(InputError, match="does not exist"):
        judge.check_judge(Judge("other", vllm_judge))
