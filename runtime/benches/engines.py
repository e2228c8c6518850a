#!/usr/bin/env python3
"""Lancet against other engines: BERT-base as `lancet synth` draws it, engines in turn within one run, ratios of medians.

    python3 -m venv peers && peers/bin/pip install onnxruntime numpy
    peers/bin/python runtime/benches/engines.py --lancet target/release/lancet [--engine openvino=PYTHON] [CASE]...

Each engine is a process of the Python that has it, which keeps the model loaded and is stopped while others have their turn, so
that threads that spin disturb nobody; its first request after each pause does not count. ONNX Runtime and OpenVINO run the dense
twin of a pruned model (the zeros gain them nothing), DeepSparse runs a copy of the pruned model itself.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys

# Lengths of a batch that is padded to 128: 8 to 104 tokens, 32 in the mean.
LENGTHS = [57, 9, 78, 29, 104, 92, 13, 8, 39, 39, 11, 8, 16, 20, 12, 9, 10, 68, 11, 23, 25, 22, 22, 30, 24, 26, 15, 98, 29, 35, 15, 27]


def case(zeros, pattern="unstructured", batch=1, seq=128, threads=2, lengths=None):
    """Share of zeros, their pattern, and the shape of a request."""
    return zeros, pattern, (batch, seq, threads, lengths)


CASES = {
    "dense": case(0.0),
    "80": case(0.8),
    "90": case(0.9),
    "95": case(0.95),
    "97": case(0.97),
    "90-4x1": case(0.9, "4x1"),
    "90-16x1": case(0.9, "16x1"),
    "90-1x4": case(0.9, "1x4"),
    "90-16-tokens": case(0.9, seq=16),
    "90-384-tokens": case(0.9, seq=384),
    "90-batch-8": case(0.9, batch=8),
    "90-1-thread": case(0.9, threads=1),
    "90-padded-batch-32": case(0.9, batch=len(LENGTHS), lengths=LENGTHS),
}


def requests(model, engine, shape):
    """Serves one engine: for each line on stdin, that many requests, their milliseconds on stdout."""
    import time

    import numpy as np

    (batch, seq, threads, lengths), random = shape, np.random.RandomState(0)
    mask = np.arange(seq)[None, :] < np.array(lengths or [seq] * batch)[:, None]
    ids = random.randint(1, 1000, (batch, seq))

    def values(name):
        of_name = ids if name == "input_ids" else mask if "mask" in name else np.zeros_like(ids)
        return of_name.astype(np.int64)

    if engine == "openvino":
        import openvino

        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", options)
        feed = {i.get_any_name(): values(i.get_any_name()) for i in compiled.inputs}
        request = compiled.create_infer_request()
        run = lambda: request.infer(feed)
    elif engine == "deepsparse":
        import deepsparse

        session = deepsparse.Engine(model=model, batch_size=batch, num_cores=threads, input_shapes=[[batch, seq]] * 3)
        feed = [values(name) for name in session.input_names]
        run = lambda: session.run(feed)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {i.name: values(i.name) for i in session.get_inputs()}
        run = lambda: session.run(None, feed)
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), flush=True)


class Engine:
    """A process that serves `requests`, stopped between turns."""

    def __init__(self, python, name, model, shape):
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "NM_DISABLE_ANALYTICS": "True"}
        command = [python, __file__, "--serve", json.dumps([model, name, shape])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.name, self.process = name, subprocess.Popen(command, text=True, env=environment, **pipes)
        self.read(lambda line: line.strip() == "ready")
        self.process.send_signal(signal.SIGSTOP)

    def read(self, wanted):
        for line in self.process.stdout:
            if wanted(line):
                return line
        raise SystemExit(f"{self.name} ended")

    def turn(self, n):
        self.process.send_signal(signal.SIGCONT)
        print(n + 1, file=self.process.stdin, flush=True)
        line = self.read(lambda line: line.startswith("["))
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)[1:]

    def end(self):
        self.process.kill()
        self.process.wait()


def synth(lancet, models, zeros, pattern):
    path = models / (f"bert-base-{zeros}-{pattern}.onnx" if zeros else "bert-base-dense.onnx")
    if not path.exists():
        drawn = ["--sparsity", str(zeros), "--pattern", pattern]
        subprocess.run([lancet, "synth", "bert-base", *drawn, "-o", path], check=True)
    return str(path)


def race(arguments, name_of_case):
    zeros, pattern, shape = CASES[name_of_case]
    batch, seq, threads, lengths = shape
    models = pathlib.Path(arguments.models)
    models.mkdir(parents=True, exist_ok=True)
    dense, pruned = synth(arguments.lancet, models, 0.0, "unstructured"), synth(arguments.lancet, models, zeros, pattern)
    peers = {"onnxruntime": sys.executable, **dict(e.split("=", 1) for e in arguments.engine)}
    engines = []
    for name, python in peers.items():
        model = dense
        if name == "deepsparse":
            model = shutil.copy(pruned, models / "deepsparse.onnx")
        engines.append(Engine(python, name, str(model), shape))
    bench = [arguments.lancet, "bench", pruned, "--seq", str(seq), "--threads", str(threads), "--json"]
    bench += ["--lengths", ",".join(map(str, lengths))] if lengths else ["--batch", str(batch)]
    times = {}
    for _ in range(arguments.rounds):
        for engine in engines:
            times.setdefault(engine.name, []).extend(engine.turn(arguments.iters))
        answer = subprocess.run([*bench, "--iters", str(2 * arguments.iters)], check=True, capture_output=True, text=True)
        times.setdefault("lancet", []).append(json.loads(answer.stdout)["median_ms"])
    for engine in engines:
        engine.end()
    medians = {name: statistics.median(of_name) for name, of_name in times.items()}
    lancet = medians.pop("lancet")
    ratios = ", ".join(f"{name} {median / lancet:.2f}x" for name, median in medians.items())
    print(f"{name_of_case}: lancet {lancet:.1f} ms; its speed over {ratios}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all of them if none is given")
    parser.add_argument("--lancet", default="target/release/lancet")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=PYTHON", help="openvino or deepsparse, and a Python that has it")
    parser.add_argument("--models", default="target/models", help="where models are kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iters", type=int, default=4)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return requests(*json.loads(arguments.serve))
    if unknown := [case for case in arguments.cases if case not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}")
    for case in arguments.cases or CASES:
        race(arguments, case)


if __name__ == "__main__":
    main()
