"""Both engines' clients, against a local HTTP server and a stand-in ``vllm``; the stages of a study."""

import contextlib
import json
import os
import socket
import stat
import sys
import threading
import time
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import fake_vllm
import numpy as np
import pandas as pd
import pytest
import yaml

from colq_utils import run
from colq_utils.base import config, process
from colq_utils.base.errors import ColqError
from studies.fp8_serving import bench, engine, make, pictures, report, server, settings
from studies.fp8_serving.settings import DetectionExperiment, Serving


@pytest.fixture(scope="module")
def held():
    return pictures.load(count=6)


@contextlib.contextmanager
def running(*arguments, **options):
    """The address of a server in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", 0), fake_vllm.handler(*arguments, **options)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def existing(url: str):
    """The context of a server that runs already."""
    return server.serving(Path("unused"), "tiny", Serving(url=url), Path("unused"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture()
def vllm(tmp_path, monkeypatch):
    """A program named vllm on the PATH."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n" + Path(fake_vllm.__file__).read_text())
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_every_kind_of_failure_is_counted_by_name(held):
    kinds = {fake_vllm.digest(p.data): i for i, p in enumerate(held)}
    replies = {1: "I see no table.", 2: b"not json", 3: "[0.9, 0.1, 0.2, 0.3]"}
    behaviour = {
        "answer": lambda data: replies.get(kinds[fake_vllm.digest(data)], fake_vllm.BOX),
        "status": lambda data: 400 if kinds[fake_vllm.digest(data)] == 4 else 200,
    }
    with running("tiny", **behaviour) as url, existing(url + "/") as used:
        answers = server.Remote(used, 5, batch=3).answer([*(p.data for p in held), b"no picture"])
    named = [engine.NO_BOX, engine.REFUSED, engine.NO_BOX, engine.REFUSED]
    assert [a.reason for a in answers] == [None, *named, None, engine.UNDECODABLE]
    assert answers[0].box == [0.1, 0.2, 0.5, 0.6] and answers[0].latency_s > 0 and answers[0].tokens == 24
    assert answers[4].detail == "HTTP 400: the server refused" and "does not decode" in answers[6].detail
    assert engine.reasons(answers) == {engine.NO_BOX: 2, engine.REFUSED: 2, engine.UNDECODABLE: 1}
    assert server.ask(used, held[0].data, 2).reason == engine.UNREACHABLE


def test_requests_are_in_flight_together_and_late_ones_named(held):
    together = threading.Barrier(len(held))  # passed by all at once or, after its timeout, by none
    with running("tiny", answer=lambda data: together.wait(20) >= 0 and fake_vllm.BOX) as url:
        remote = server.Remote(server.Server(url, "tiny"), 30, batch=len(held))
        assert [a.reason for a in remote.answer([p.data for p in held])] == [None] * len(held)
    with running("tiny", delay_s=0.4) as url:
        assert server.ask(server.Server(url, "tiny"), held[0].data, 0.1).reason == engine.LATE


def refused(message: str, serve: contextlib.AbstractContextManager) -> str:
    """The error of a server that does not come up."""
    with pytest.raises(ColqError, match=message) as error, serve:
        pass
    return str(error.value)


def test_wrong_model_and_wrong_server(held):
    with running("other") as url:
        refused("does not serve 'tiny'; it serves: other", existing(url))
        assert "does not exist" in server.ask(server.Server(url, "tiny"), held[0].data, 2).detail
        refused("does not answer as an OpenAI API", existing(url + "/deeper"))


def test_start_ask_stop_and_nothing_is_left(vllm, held, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "child")
    settings, log = Serving(engine="vllm", port=free_port(), healthy_s=20), tmp_path / "log.txt"
    with server.serving(tmp_path, "tiny", settings, log) as used:
        assert used.healthy_s > 0 and server.ask(used, held[0].data, 5).box == [0.1, 0.2, 0.5, 0.6]
        assert used.memory() == {"weight_bytes": 2.5 * 2**30, "kv_bytes": 10 * 2**30}
        assert used.resident_bytes() > 10**7
        child = int(log.read_text().split("child ")[1].split()[0])
        assert used.command[1:3] == ["serve", str(tmp_path)] and "--gpu-memory-utilization" in used.command
    assert used.process.poll() is not None
    for _ in range(50):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("a child of the server is still running")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("never", "was not healthy within 1.5 s and was ended"),
        ("dies", "ended with status 3 before it was healthy"),
    ],
)
def test_unhealthy_shows_command_and_log(vllm, tmp_path, monkeypatch, mode, message):
    monkeypatch.setenv("FAKE_VLLM", mode)
    settings = Serving(engine="vllm", port=free_port(), healthy_s=1.5 if mode == "never" else 20)
    text = refused(message, server.serving(tmp_path, "tiny", settings, tmp_path / "log"))
    assert f"vllm serve {tmp_path}" in text and "| Available KV cache memory: 10.0 GiB" in text
    assert mode == "never" or "| ValueError: no such quantization" in text
    server._free(settings.port)  # raises if something still listens


def test_port_taken_and_no_vllm(vllm, tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = Serving(engine="vllm", port=other.getsockname()[1])
        serve = server.serving(tmp_path, "x", settings, tmp_path / "log")
        refused(f"port {settings.port} is taken", serve)
    monkeypatch.setenv("PATH", str(tmp_path))
    serve = server.serving(tmp_path, "x", Serving(engine="vllm"), tmp_path / "log")
    refused("no `vllm` on the PATH", serve)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The smoke study, stage by stage in this process (a fresh process a variant is `isolate`'s own test)."""
    experiment = settings.load("nutrition-fp8-smoke", tmp_path_factory.mktemp("detection"))

    def here(function: str, arguments: dict, *unused) -> process.Outcome:
        return process.Outcome(value=json.loads(json.dumps(bench.child(**arguments))))

    stages = (make.inspect, make.calibrate, make.quantize, make.accept, bench.run, bench.evaluate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "call", here)
        outcome = {stage.__name__: stage(experiment) for stage in stages}
    report.write(experiment)
    return experiment, outcome


def test_stages(study):
    experiment, outcome = study
    assert outcome["calibrate"]["shared_with_held_out"].max() == 0
    accepted = outcome["accept"].set_index("variant")
    assert accepted["loads"].all() and accepted["finite"].all()
    assert accepted.loc["tiny-fp8-dynamic", "blocks_share"] <= 0.55
    rows = outcome["run"].set_index(["variant", "concurrency"])
    assert set(rows.index) == {(v, c) for v in ("tiny-bf16", "tiny-fp8-dynamic") for c in (1, 2)}
    assert (rows["failed"] == 0).all() and rows["error"].isna().all()
    assert (rows["latency_s_min"] <= rows["latency_s_p50"]).all()
    assert (rows["latency_s_p90"] <= rows["latency_s_max"]).all() and rows["latency_s_p99"].isna().all()
    scores = outcome["evaluate"].set_index("variant")
    assert (scores["iou_mean"] >= 0.85).all() and (scores["failed"] == 0).all()
    assert scores.loc["tiny-fp8-dynamic", "shift_px_mean"] <= 1
    cold = pd.read_csv(experiment.results("benchmark") / "cold.csv")
    assert (cold["cold_start_s"] > cold["load_s"]).all()
    memory = pd.read_csv(experiment.results("benchmark") / "memory.csv").set_index("variant")
    assert (memory[["weight_bytes", "kv_bytes", "total_bytes"]] > 0).all(axis=None)
    assert memory["weight_bytes"]["tiny-fp8-dynamic"] < memory["weight_bytes"]["tiny-bf16"]


def test_report_has_every_published_row_and_only_existing_pictures(study):
    experiment, _ = study
    text = (experiment.results("reports") / "fp8_serving.md").read_text()
    rows = (
        "GPU memory, Model weights, Mean latency, Minimum latency, Maximum latency, Steady-state latency, "
        "Output, total GPU memory, prediction accuracy, Memory impact, Latency impact, "
        "What was not measured, Hardware note, Maximum length, GPU memory utilization"
    )
    assert [row for row in rows.split(", ") if row not in text] == []
    assert "22,798" in text and "23,112" in text and "nan" not in text.lower().replace("nutrition", "")
    assert len(text.split("<details")[0].split()) < 800
    assert text.count("<details>\n<summary>") == text.count("</summary>\n\n") == 8
    links = [line.split("](")[1].split(")")[0] for line in text.splitlines() if line.startswith("![")]
    existing = [link for link in links if (experiment.results("reports") / link).resolve().exists()]
    assert len(links) == 5 and existing == links
    assert report.text(report.load(experiment)) == text, "same results, same bytes"


def test_a_missed_bar_changes_the_recommendation(study):
    experiment, _ = study
    results = report.load(experiment)

    def verdict(**changed) -> str:
        return report.recommendation(replace(results, **changed))

    def timed(factor: float) -> pd.DataFrame:
        calls = results.timed
        changed = calls.latency_s.mask(calls.variant == "fp8", factor * calls.latency_s)
        return calls.assign(latency_s=changed)

    assert "Keep bf16" in verdict(scores=results.scores.assign(iou_diff_low=-0.011))
    assert "Keep bf16" not in verdict(scores=results.scores.assign(iou_diff_low=-0.009))
    assert "Keep bf16" not in verdict() and "misses the bar of 0.75" in verdict()
    assert "whether it is faster is not measured" in verdict(timed=None, run=None)
    assert "but is not faster" in verdict(timed=timed(2)) and "Use FP8" in verdict(timed=timed(0.5))


def test_the_report_without_the_run_at_7b_dimensions_and_vllm(study):
    results = replace(report.load(study[0]), run=None, timed=None, on_gpu=None, vllm=None)
    text = report.text(results)
    assert "that run's files are missing" in text and "Answers of a real vLLM server" in text
    assert "Measured at 7B dimensions on the H200" not in text


def test_the_committed_run_at_7b_dimensions_is_complete():
    log = json.loads((report.SEVEN / "run.json").read_text())
    rows = report.seven_rows(pd.read_parquet(report.SEVEN / "samples.parquet"))
    assert log["bytes"]["fp8"]["blocks"] <= 0.55 * log["bytes"]["bf16"]["blocks"]
    assert max(log["kernel_relative_error"].values()) < 0.01
    assert rows["n"]["bf16", 1] >= 50
    assert rows["latency_s_mean"]["fp8", 1] < rows["latency_s_mean"]["bf16", 1]
    parts = rows[["prepare_s", "prefill_s", "decode_s"]].sum(axis=1)
    assert np.allclose(parts, rows["latency_s_mean"])


def test_the_vllm_engine_through_the_same_stages(study, vllm, tmp_path):
    experiment, _ = study
    serving = {"engine": "vllm", "port": free_port(), "requests": 4, "rounds": 1, "warmup": 2}
    fields = {"serving": serving | {"concurrency": (1, 2)}, "name": "served", "output": tmp_path}
    served = DetectionExperiment.model_validate(experiment.model_dump() | fields)
    make.quantize(served)
    rows = bench.run(served)
    assert (rows["n"] == 4).all() and (rows["engine"] == "vllm").all() and (rows["failed"] == 0).all()
    memory = pd.read_csv(served.results("benchmark") / "memory.csv")
    assert np.allclose(memory["weight_bytes"], 2.5 * 2**30, rtol=1e-5)
    assert np.allclose(memory["kv_bytes"], 10 * 2**30, rtol=1e-5) and (memory["total_bytes"] > 10**7).all()
    scores = bench.evaluate(served).set_index("variant")  # one box for every picture
    assert scores["same_box"]["tiny-fp8-dynamic"] == 1 and 0 < scores["iou_mean"]["tiny-bf16"] < 0.6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variants": ["fp8-dynamic"]}, "the first variant is the base"),
        ({"variants": ["bf16", "int4"]}, "unknown variant 'int4'; known after bf16: fp8-dynamic"),
        ({"serving": {"engine": "sglang"}}, "transformers"),
        ({"serving": {"url": "http://x"}}, "serves one model"),
        ({"colour": 1}, "colour"),
    ],
)
def test_mistakes_in_the_experiment_file(tmp_path, fields, message):
    committed = config.ROOT / "studies" / "fp8_serving" / "nutrition-fp8.yaml"
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(committed.read_text()) | fields))
    with pytest.raises(ColqError, match=message):
        settings.load(str(path))


def test_the_notebook_runs_headlessly_and_is_fresh_afterwards(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the tests' own, with which a notebook shows no pictures
    experiment, lines = settings.load("nutrition-fp8-smoke", tmp_path), []
    run.run(experiment, "nutrition-fp8-smoke", say=lines.append, step=settings.step)
    assert "done" in lines[-1] and (experiment.results("reports") / "fp8_serving.md").exists()
    copy = (experiment.results("notebooks") / "fp8_serving.ipynb").read_text()
    assert str(config.ROOT) not in copy and str(tmp_path) not in copy and copy.count('"image/png"') >= 4
    run.run(experiment, "nutrition-fp8-smoke", say=lines.append, step=settings.step)
    assert "nothing changed" in lines[-1]
