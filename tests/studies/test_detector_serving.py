"""Both engines' clients: a real local HTTP server and a stand-in ``vllm`` program; the stages of a detection study."""

import json
import os
import socket
import stat
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

import fake_vllm
import numpy as np
import pandas as pd
import pytest

from colq_utils import run
from colq_utils.base import config, process
from colq_utils.base.errors import ColqError
from studies.fp8_serving import bench, engine, make, pictures, report, server, settings
from studies.fp8_serving.settings import DetectionExperiment, Serving


@pytest.fixture(scope="module")
def held():
    return pictures.load(count=6)


def running(*arguments, **options):
    """A server in a thread; returns it and its address."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), fake_vllm.handler(*arguments, **options))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made, f"http://127.0.0.1:{made.server_address[1]}"


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
    made, url = running(
        "tiny",
        answer=lambda d: replies.get(kinds[fake_vllm.digest(d)], fake_vllm.BOX),
        status=lambda d: 400 if kinds[fake_vllm.digest(d)] == 4 else 200,
    )
    with server.serving(Path("unused"), "tiny", Serving(url=url + "/"), Path("unused")) as used:
        answers = server.Remote(used, 5, batch=3).answer([*(p.data for p in held), b"no picture"])
    made.shutdown()
    assert [a.reason for a in answers] == [
        None,
        engine.NO_BOX,
        engine.REFUSED,
        engine.NO_BOX,
        engine.REFUSED,
        None,
        engine.UNDECODABLE,
    ]
    assert answers[0].box == [0.1, 0.2, 0.5, 0.6] and answers[0].latency_s > 0 and answers[0].tokens == 24
    assert answers[4].detail == "HTTP 400: the server refused" and "does not decode" in answers[6].detail
    assert engine.reasons(answers) == {engine.NO_BOX: 2, engine.REFUSED: 2, engine.UNDECODABLE: 1}
    made.server_close()
    assert server.ask(used, held[0].data, 2).reason == engine.UNREACHABLE


def test_requests_are_in_flight_together_and_late_ones_named(held):
    together = threading.Barrier(len(held))  # passed by all at once or, after its timeout, by none
    made, url = running("tiny", answer=lambda data: together.wait(20) >= 0 and fake_vllm.BOX)
    answers = server.Remote(server.Server(url, "tiny"), 30, batch=len(held)).answer([p.data for p in held])
    assert [a.reason for a in answers] == [None] * len(held)
    made.shutdown()
    made.server_close()
    made, url = running("tiny", delay_s=0.4)
    assert server.ask(server.Server(url, "tiny"), held[0].data, 0.1).reason == engine.LATE
    made.shutdown()
    made.server_close()


def test_wrong_model_and_wrong_server(held):
    made, url = running("other")
    with (
        pytest.raises(ColqError, match="does not serve 'tiny'; it serves: other"),
        server.serving(Path("x"), "tiny", Serving(url=url), Path("x")),
    ):
        pass
    assert "does not exist" in server.ask(server.Server(url, "tiny"), held[0].data, 2).detail
    with (
        pytest.raises(ColqError, match="does not answer as an OpenAI API"),
        server.serving(Path("x"), "tiny", Serving(url=url + "/deeper"), Path("x")),
    ):
        pass
    made.shutdown()
    made.server_close()


def test_start_ask_stop_and_nothing_is_left(vllm, held, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "child")
    settings, log = Serving(engine="vllm", port=free_port(), healthy_s=20), tmp_path / "log.txt"
    with server.serving(tmp_path, "tiny", settings, log) as used:
        assert used.healthy_s > 0 and server.ask(used, held[0].data, 5).box == [0.1, 0.2, 0.5, 0.6]
        assert (
            used.memory() == {"weight_bytes": 2.5 * 2**30, "kv_bytes": 10 * 2**30}
            and used.resident_bytes() > 10**7
        )
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
    port = free_port()
    with (
        pytest.raises(ColqError) as error,
        server.serving(
            tmp_path,
            "tiny",
            Serving(engine="vllm", port=port, healthy_s=1.5 if mode == "never" else 20),
            tmp_path / "log",
        ),
    ):
        pass
    text = str(error.value)
    assert (
        message in text
        and f"vllm serve {tmp_path}" in text
        and "| Available KV cache memory: 10.0 GiB" in text
    )
    assert mode == "never" or "| ValueError: no such quantization" in text
    server._free(port)  # raises if something still listens


def test_port_taken_and_no_vllm(vllm, tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(ColqError, match=f"port {port} is taken"),
            server.serving(tmp_path, "x", Serving(engine="vllm", port=port), tmp_path / "log"),
        ):
            pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ColqError, match="no `vllm` on the PATH"),
        server.serving(tmp_path, "x", Serving(engine="vllm"), tmp_path / "log"),
    ):
        pass


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The smoke study, stage by stage in this process (a fresh process a variant is `isolate`'s own test)."""
    experiment = settings.load("nutrition-fp8-smoke", tmp_path_factory.mktemp("detection"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            process,
            "call",
            lambda function, arguments, *unused: process.Outcome(
                value=json.loads(json.dumps(bench.child(**arguments)))
            ),
        )
        outcome = {
            f.__name__: f(experiment)
            for f in (make.inspect, make.calibrate, make.quantize, make.accept, bench.run, bench.evaluate)
        }
    report.write(experiment)
    return experiment, outcome


def test_stages(study):
    experiment, outcome = study
    assert outcome["calibrate"]["shared_with_held_out"].max() == 0
    accepted = outcome["accept"].set_index("variant")
    assert (
        accepted["loads"].all()
        and accepted["finite"].all()
        and accepted.loc["tiny-fp8-dynamic", "blocks_share"] <= 0.55
    )
    rows = outcome["run"].set_index(["variant", "concurrency"])
    assert (
        set(rows.index) == {(v, c) for v in ("tiny-bf16", "tiny-fp8-dynamic") for c in (1, 2)}
        and (rows["failed"] == 0).all()
        and rows["error"].isna().all()
    )
    assert (
        (rows["latency_s_min"] <= rows["latency_s_p50"]).all()
        and (rows["latency_s_p90"] <= rows["latency_s_max"]).all()
        and rows["latency_s_p99"].isna().all()
    )
    scores = outcome["evaluate"].set_index("variant")
    assert (
        (scores["iou_mean"] >= 0.85).all()
        and scores.loc["tiny-fp8-dynamic", "shift_px_mean"] <= 1
        and (scores["failed"] == 0).all()
    )
    cold = pd.read_csv(experiment.results("benchmark") / "cold.csv")
    assert (cold["cold_start_s"] > cold["load_s"]).all()
    memory = pd.read_csv(experiment.results("benchmark") / "memory.csv").set_index("variant")
    assert (memory[["weight_bytes", "kv_bytes", "total_bytes"]] > 0).all().all() and memory.loc[
        "tiny-fp8-dynamic", "weight_bytes"
    ] < memory.loc["tiny-bf16", "weight_bytes"]


def test_report_has_every_published_row_and_only_existing_pictures(study):
    experiment, _ = study
    text = (experiment.results("reports") / "fp8_serving.md").read_text()
    for row in (
        "GPU memory",
        "Model weights",
        "Mean latency",
        "Minimum latency",
        "Maximum latency",
        "Steady-state latency",
        "Output",
        "total GPU memory",
        "prediction accuracy",
        "Memory impact",
        "Latency impact",
        "What was not measured",
        "Hardware note",
        "Maximum length",
        "GPU memory utilization",
    ):
        assert row in text, row
    assert "22,798" in text and "23,112" in text and "nan" not in text.lower().replace("nutrition", "")
    assert (
        len(text.split("<details")[0].split()) < 800
        and text.count("<details>\n<summary>") == text.count("</summary>\n\n") == 8
    )
    links = [line.split("](")[1].split(")")[0] for line in text.splitlines() if line.startswith("![")]
    assert len(links) == 5 and all(
        (experiment.results("reports") / link).resolve().exists() for link in links
    )
    assert report.text(report.load(experiment)) == text, "same results, same bytes"


def test_a_missed_bar_changes_the_recommendation(study):
    from dataclasses import replace

    experiment, _ = study
    results = report.load(experiment)
    worse = results.scores.assign(same_box=0.2, shift_px_mean=7.0)
    assert "Keep bf16" in report.recommendation(
        replace(results, scores=worse)
    ) and "Keep bf16" not in report.recommendation(results)
    assert "whether it is faster is not measured" in report.recommendation(
        replace(results, timed=None, run=None)
    )
    halved = results.timed.assign(
        latency_s=results.timed.latency_s.where(results.timed.variant != "fp8", results.timed.latency_s / 2)
    )
    slower = results.timed.assign(
        latency_s=results.timed.latency_s.where(results.timed.variant != "fp8", 2 * results.timed.latency_s)
    )
    assert "but is not faster" in report.recommendation(replace(results, timed=slower))
    assert "misses the bar of 0.75" in report.recommendation(results) and "Use FP8" in report.recommendation(
        replace(results, timed=halved)
    )


def test_the_committed_run_at_7b_dimensions_is_complete():
    run_ = json.loads((report.SEVEN / "run.json").read_text())
    rows = report.seven_rows(pd.read_parquet(report.SEVEN / "samples.parquet"))
    assert (
        run_["bytes"]["fp8"]["blocks"] <= 0.55 * run_["bytes"]["bf16"]["blocks"]
        and max(run_["kernel_relative_error"].values()) < 0.01
    )
    assert (
        rows.loc[("bf16", 1), "n"] >= 50
        and rows.loc[("fp8", 1), "latency_s_mean"] < rows.loc[("bf16", 1), "latency_s_mean"]
    )
    parts = rows[["prepare_s", "prefill_s", "decode_s"]].sum(axis=1)
    assert np.allclose(parts, rows["latency_s_mean"])


def test_the_vllm_engine_through_the_same_stages(study, vllm, tmp_path):
    experiment, _ = study
    served = DetectionExperiment.model_validate(
        experiment.model_dump()
        | {
            "serving": {
                "engine": "vllm",
                "port": free_port(),
                "requests": 4,
                "rounds": 1,
                "warmup": 2,
                "concurrency": (1, 2),
            },
            "name": "served",
            "output": tmp_path,
        }
    )
    make.quantize(served)
    rows = bench.run(served)
    assert (rows["n"] == 4).all() and (rows["engine"] == "vllm").all() and (rows["failed"] == 0).all()
    memory = pd.read_csv(served.results("benchmark") / "memory.csv")
    assert (
        np.allclose(memory["weight_bytes"], 2.5 * 2**30, rtol=1e-5)
        and np.allclose(memory["kv_bytes"], 10 * 2**30, rtol=1e-5)
        and (memory["total_bytes"] > 10**7).all()
    )
    scores = bench.evaluate(served).set_index("variant")
    assert (
        scores.loc["tiny-fp8-dynamic", "same_box"] == 1 and 0 < scores.loc["tiny-bf16", "iou_mean"] < 0.6
    ), "one box for every picture"


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
    import yaml

    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            yaml.safe_load((config.ROOT / "studies" / "fp8_serving" / "nutrition-fp8.yaml").read_text())
            | fields
        )
    )
    with pytest.raises(ColqError, match=message):
        settings.load(str(path))


def test_the_notebook_runs_headlessly_and_is_fresh_afterwards(tmp_path, monkeypatch):
    monkeypatch.delenv(
        "MPLBACKEND", raising=False
    )  # the tests' own: with it, pictures are not shown in a notebook
    experiment, lines = settings.load("nutrition-fp8-smoke", tmp_path), []
    run.run(experiment, "nutrition-fp8-smoke", say=lines.append, step=settings.step)
    assert "done" in lines[-1] and (experiment.results("reports") / "fp8_serving.md").exists()
    copy = (experiment.results("notebooks") / "fp8_serving.ipynb").read_text()
    assert str(config.ROOT) not in copy and str(tmp_path) not in copy and copy.count('"image/png"') >= 4
    run.run(experiment, "nutrition-fp8-smoke", say=lines.append, step=settings.step)
    assert "nothing changed" in lines[-1]
