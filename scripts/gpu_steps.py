"""The steps of gpu_check.sh that are not commands of the package. Each writes OUT/<step>.json, and tables also as .md.

On a CPU, everything runs at toy size, and Triton's kernels run in its interpreter.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

PARTS = ("right", "kernels", "programs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("against-the-cpu", "graph", "compile", "one-pass", "ceilings", "launches", "scan-pass", "summary"):
        steps.add_parser(name)
    steps.add_parser("efficiency").add_argument("tokens", type=int, nargs="+")
    for name in ("scan", "sweeps"):
        steps.add_parser(name).add_argument("--rounds", type=int, default=5)
    steps.add_parser("speeds").add_argument("runs", type=Path, nargs="+")
    resume = steps.add_parser("resume")
    resume.add_argument("run", type=Path)
    resume.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.device == "cpu":
        make_trials_short()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that finished measurements are written
    result = globals()[options.step.replace("-", "_")](options)
    if result is not None:
        print(_save(result, options))


def make_trials_short():
    """Make each timed call count only once."""
    from ssamba_upstream.benchmark import timing

    timing.SECONDS_EACH = 0


def against_the_cpu(options):
    """Compare Triton's scan and its gradients in three dtypes with the definition in float64 on the CPU."""
    import torch

    from ssamba_upstream import ops

    on_gpu = options.device == "cuda"
    shape = (2, 64, 300) if on_gpu else (1, 4, 33)
    bounds = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
    rows, wrong = [], []
    for dtype, bound in bounds.items():
        for reverse in (False, True):
            inputs = {name: tensor if name == "A" else tensor.to(dtype) for name, tensor in _inputs(*shape).items()}
            found = _scan_and_gradients(ops.triton.selective_scan_triton, inputs, reverse, options.device)
            exact = {name: tensor.double() for name, tensor in inputs.items()}
            expected = _scan_and_gradients(ops.selective_scan_reference, exact, reverse, "cpu")
            for name, tensor in expected.items():
                error = ((found[name].cpu().double() - tensor).norm() / tensor.norm()).item()
                rows.append({"dtype": str(dtype), "reverse": reverse, "of": name, "relative error": error})
                wrong += [rows[-1]] if not error < bound else []
    return _checked(rows, wrong)


def graph(options):
    """Compare a network's pass captured as a CUDA graph with the pass launched kernel by kernel."""
    import torch

    model, inputs = _network(options.device, 1)
    with torch.no_grad():
        expected = model(inputs).last_hidden_state
        if options.device == "cpu":
            replay, found = (lambda: None), expected
        else:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    model(inputs)
            torch.cuda.current_stream().wait_stream(stream)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                found = model(inputs).last_hidden_state
            replay = captured.replay
        replay()
        times = _milliseconds({"eager": lambda: model(inputs), "graph": replay}, options.device)
    return _checked({"largest difference": (found - expected).abs().max().item(), "ms": times},
                    not torch.allclose(found, expected, rtol=1e-4, atol=1e-4))


def compile(options):
    """Compare a network under torch.compile with the network itself, forward and backward."""
    import torch

    results = []
    for compiled in (False, True):
        model, inputs = _network(options.device, 2, layers=2)
        backend = "inductor" if options.device == "cuda" else "eager"
        network = torch.compile(model, backend=backend) if compiled else model
        output = network(inputs).last_hidden_state
        _loss(output).backward()
        results.append([output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    errors = [((one - other).norm() / one.norm().clamp(min=1e-12)).item() for one, other in zip(*results)]
    return _checked({"largest relative difference": max(errors)}, not max(errors) < 1e-2)


def one_pass(options):
    """Run the two scans and the convolutions once, forward and backward, for tools that check memory."""
    model, inputs = _network(options.device, 2, layers=2)
    _loss(model(inputs).last_hidden_state).backward()
    if options.device == "cuda":
        import torch

        torch.cuda.synchronize()


def ceilings(options):
    """Measure bytes, floating-point operations and powers of two per second."""
    from ssamba_upstream.benchmark.scan import measure_machine

    return measure_machine(options.device)


def launches(options):
    """Count kernel launches and waits in the upstream's forward pass, and time it, for one length and for many."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from ssamba_upstream import SsambaConfig, SsambaModel
    from ssamba_upstream.frames import FrameEncoder

    on_gpu = options.device == "cuda"
    layers = 24 if on_gpu else 2
    config = SsambaConfig.from_size("tiny", num_hidden_layers=layers, time_stride=10, frequency_stride=10)
    encoder = FrameEncoder(SsambaModel(config)).to(options.device).eval()
    unit = 16000 if on_gpu else 1600
    inputs = {"1 x 1 s": [unit], "1 x 10 s": [10 * unit], "32 x 4 s": [4 * unit] * 32,
              "32 lengths": [unit + unit // 5 * i for i in range(32)]}
    rows = []
    for name, lengths in inputs.items():
        wavs = [0.1 * torch.randn(length, device=options.device) for length in lengths]
        with torch.no_grad(), _backend(options.device):
            encoder(wavs)
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            with profile(activities=activities) as profiler:
                encoder(wavs)
            counted = {event.key: event.count for event in profiler.key_averages()}
            rows.append({
                "input": name, "launches": sum(n for key, n in counted.items() if "LaunchKernel" in key),
                "waits": sum(n for key, n in counted.items() if "StreamSynchronize" in key),
                "ms": _milliseconds({"pass": lambda: encoder(wavs)}, options.device)["pass"],  # noqa: B023
            })
    return rows


def scan(options):
    """Run `ssamba bench scan` without its peers, which take minutes to compile; at toy size on a CPU."""
    from ssamba_upstream.benchmark import scan as benchmark

    benchmark._peers = dict
    if options.device == "cpu":
        benchmark.SCAN_SHAPES = ((1, 8, 33),)
    return benchmark.bench_scan(options.device, options.rounds)


def scan_pass(options):
    """Run the scan and its gradients twice, so that nothing is compiled the second time, for profilers."""
    from ssamba_upstream.ops import triton

    inputs = _inputs(*((8, 768, 4096) if options.device == "cuda" else (1, 4, 20)))
    for _ in range(2):
        _scan_and_gradients(triton.selective_scan_triton, inputs, False, options.device)


def efficiency(options):
    """Run `ssamba bench efficiency`; on a CPU, with networks of two blocks."""
    from ssamba_upstream.benchmark.efficiency import DEPTHS, write_study

    rounds, depths = (3, DEPTHS) if options.device == "cuda" else (1, (2, 2))
    print(write_study(options.out / "bench", options.device, rounds, "tiny", options.tokens, depths))


def sweeps(options):
    """Time the scan, forward and with gradients, with other values of its launch constants."""
    import torch

    from ssamba_upstream.ops import triton

    values = {"FORWARD_WARPS": (8, 16, 24), "BACKWARD_WARPS": (4, 8, 16), "SHORTEST_CHUNK": (32, 64, 128, 256),
              "TILE": (8, 16, 32)}
    shapes, dtypes = ((8, 768, 512), (8, 768, 4096), (1, 384, 1189)), (torch.float32, torch.bfloat16)
    if options.device == "cpu":
        values = {name: tried[:1] for name, tried in values.items()}
        shapes, dtypes = ((1, 4, 20),), dtypes[:1]
    rows = []
    for name, tried in values.items():
        default = getattr(triton, name)
        for value in tried:
            setattr(triton, name, value)
            for shape in shapes:
                for dtype in dtypes:
                    with torch.device(options.device):
                        given = _inputs(*shape)
                    inputs = {key: (tensor if key == "A" else tensor.to(dtype)).detach().requires_grad_()
                              for key, tensor in given.items()}
                    row = {"constant": name, "value": value, "default": "yes" if value == default else "",
                           "shape": " x ".join(map(str, shape)), "dtype": str(dtype).removeprefix("torch.")}
                    passes, error = _passes(triton.selective_scan_triton, inputs), ""
                    try:
                        measured = _milliseconds(passes, options.device, options.rounds)
                    except Exception as reason:  # a value that does not compile must not stop the others
                        measured, error = dict.fromkeys(passes, ""), f"{type(reason).__name__}: {reason}"[:200]
                    rows.append(row | measured | {"error": error})
                    _save(rows, options)  # so that results exist if the step times out
        setattr(triton, name, default)
    return rows


def resume(options):
    """Resume a stopped run for 20 steps (2 on a CPU)."""
    from ssamba_upstream.training.training_state import training_states

    last = int(training_states(options.run / "states")[0].stem.removeprefix("step-"))
    steps = last + (20 if options.device == "cuda" else 2)
    print(f"stopped after step {last}")
    done = subprocess.run([*options.command, f"steps={steps}"], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return _checked({"stopped after": last, "went on to": steps},
                    done.returncode or f"resuming after step {last}" not in done.stdout + done.stderr)


def speeds(options):
    """Return the clips per second and final losses of runs."""
    rows = []
    for run in options.runs:
        log = run / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        training = [line for line in lines if line["kind"] == "training"]
        names = ("step", "clips_per_second", "waiting_for_data", "loss")
        rows += [{"run": run.name, **{name: training[-1][name] for name in names}}] if training else []
    return rows


def summary(options):
    """Write summary.md: all steps of the parts that have run, and their tables."""
    lines = ["| part | step | | seconds | |", "| --- | --- | --- | --- | --- |"]
    for part in PARTS:
        file = options.out / part / "steps.tsv"
        if not file.exists():
            lines.append(f"| {part} | all | not run | | |")
            continue
        for line in file.read_text().splitlines():
            lines.append(f"| {part} | {' | '.join(line.split(chr(9)))} |")
    print("\n".join(lines))
    tables = [*sorted(options.out.glob("*.md")), *sorted(options.out.glob("bench/*.md"))]
    lines += [f"\n## {table.stem}\n\n{table.read_text()}" for table in tables if table.stem != "summary"]
    (options.out / "summary.md").write_text("\n".join(lines) + "\n")


def _save(result, options):
    from ssamba_upstream.files import to_json

    text = to_json(result, indent=2)
    (options.out / f"{options.step}.json").write_text(text)
    if result and isinstance(result, list):
        from ssamba_upstream.benchmark.timing import markdown

        (options.out / f"{options.step}.md").write_text(markdown(result) + "\n")
    return text


def _inputs(batch, channels, length, states=16):
    import torch

    torch.manual_seed(0)
    states = states if channels > 8 else 4

    def sequence(width):
        return torch.randn(batch, length, width).transpose(1, 2)

    return {"u": sequence(channels), "delta": sequence(channels) - 2,
            "A": -torch.arange(1.0, states + 1).repeat(channels, 1), "B": sequence(states), "C": sequence(states),
            "D": torch.ones(channels), "z": sequence(channels), "delta_bias": torch.randn(channels)}


def _scan_and_gradients(scan, inputs, reverse, device):
    import torch

    inputs = {name: tensor.to(device).requires_grad_() for name, tensor in inputs.items()}
    output = scan(**inputs, delta_softplus=True, reverse=reverse)
    gradients = torch.autograd.grad(output.float().square().sum(), list(inputs.values()))
    return {"output": output.detach(), **dict(zip(inputs, gradients))}


def _loss(output):
    """Return a mean with varied weights: the final norm fixes the sum of squares, whose gradient would be rounding."""
    import torch

    weights = torch.arange(output.numel(), device=output.device).view_as(output).sin()
    return (output * weights).mean()


def _passes(scan, inputs):
    import torch

    def forward():
        with torch.no_grad():
            scan(**inputs, delta_softplus=True)

    def both():
        torch.autograd.grad(scan(**inputs, delta_softplus=True).sum(), list(inputs.values()))

    return {"forward, ms": forward, "forward + backward, ms": both}


def _network(device, batch, layers=None):
    import torch

    from ssamba_upstream import SsambaConfig, SsambaModel

    torch.manual_seed(0)
    config = SsambaConfig.from_size("tiny") if device == "cuda" else SsambaConfig(hidden_size=32, num_hidden_layers=2)
    config.num_hidden_layers = layers or config.num_hidden_layers
    frames = 1024 if device == "cuda" else 64
    return SsambaModel(config).to(device).eval(), torch.randn(batch, frames, config.num_mel_bins, device=device)


def _backend(device):
    """Force the triton backend only on a GPU: on a CPU, its interpreter would take hours for a network."""
    from ssamba_upstream import ops

    return ops.forced_backend("triton") if device == "cuda" else contextlib.nullcontext()


def _milliseconds(calls, device, rounds=5):
    from ssamba_upstream.benchmark.timing import median_times

    return median_times(calls, rounds if device == "cuda" else 1, device)


def _checked(result, wrong):
    """Return the result; if something is wrong, print it and let the step fail."""
    if wrong:
        print(json.dumps(result, indent=2))
        sys.exit(f"wrong: {wrong}")
    return result


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.1f} s", file=sys.stderr)
