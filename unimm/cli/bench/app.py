"""The commands of `unimm bench` with their options; what each measures is in `unimm.bench`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.bench.checkpoint_commands import checkpoint_commands
from unimm.cli.bench.parts import parts

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Time unimm, where there is one beside a peer: one run, the same weights, every figure with where it was measured. Or "
    "kill trainings and compare.",
)
bench.add_typer(parts)
bench.add_typer(checkpoint_commands)


@bench.command()
def generate(
    model: Annotated[str, typer.Option("--model", "-m", help="A size by name, with random weights, or a Janus' folder.")] = (
        "janus_110m"
    ),
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the best that is here].")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    batch: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES[+TEXTS]", help="Images drawn, texts written at once; repeat it [default: 1, 8, 8+8]."),
    ] = None,
    guidance_scale: Annotated[float, typer.Option(min=0.0, help="1 is off, which transformers cannot do.")] = 5.0,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of --window: of drawings.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Of --window: among how many codes is chosen; 0 is all.")] = 0,
    window: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="Time so many codes at once beside one at a time, unimm alone; 0: as chosen, in float32 on a CPU. Repeat it.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Time unimm with weights of fewer bits too: int8, int4, fp8; repeat it.")
    ] = None,
    kernels: Annotated[
        list[str] | None, typer.Option(help="Time unimm with these decode kernels: torch, triton (CUDA devices); repeat it.")
    ] = None,
    only_weights: Annotated[
        bool, typer.Option("--only-weights", help="Time nothing but unimm with --weights and --kernels.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Trials of each; the median is reported.")] = 1,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON; a plot lies beside it.")] = (
        Path("runs/bench/generate.json")
    ),
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Time mixed requests that come at random instead, so many a second, unimm alone."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Of --rate: captions, questions, chats and drawings in all.")] = 50,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Tell where a step goes instead: bytes, operations, calls, what they take at least."),
    ] = False,
    busy: Annotated[int, typer.Option(min=0, help="Processes that compute all the time beside it, one thread each.")] = 0,
    deepseek: Annotated[
        Path | None, typer.Option(help="A clone of github.com/deepseek-ai/Janus, to time its drawing loop as well.")
    ] = None,
    deepseek_python: Annotated[
        str, typer.Option(help="The Python of an environment that its code works in: transformers 4.46, torch, timm, einops.")
    ] = sys.executable,
) -> None:
    """How fast images are drawn and texts written, against transformers and against the speed of the device's memory.

    \b
    Example:
      unimm bench generate --model janus_110m --batch 1 --batch 8 --batch 8+8 --weights int8
      unimm bench generate --model demo --dtype float32 --batch 1 --window 8 --guidance-scale 2.5 --temperature 0.6 --repeats 9
      unimm bench generate --model demo --dtype float32 --rate 4 --busy 2
      unimm bench generate --model demo --dtype float32 --explain --batch 1 --batch 8
    """
    from unimm.bench.arrivals import busy as kept_busy
    from unimm.cli.bench.arrivals import run as run_arrivals

    with kept_busy(busy):
        if rate is not None:
            return run_arrivals(model, (device, dtype), requests, rate, busy, out)
        if explain:
            from unimm.cli.bench.explain import run as run_explain

            named = (weights or [], kernels or [], window or [1])
            return run_explain(model, (device, dtype), batch or ["1", "8"], guidance_scale, named, out)
        if window:
            from unimm.cli.bench.windows import run as run_windows

            settings = (guidance_scale, temperature, top_k)
            return run_windows(model, (device, dtype), batch or ["1", "8"], window, settings, weights or [], repeats, out)
        from unimm.cli.bench.generate import run

        sizes, few = batch or ["1", "8", "8+8"], (weights or [], only_weights, kernels or [])
        run(model, (device, dtype), sizes, guidance_scale, few, repeats, out, (deepseek, deepseek_python))


@bench.command()
def rollouts(
    model: Annotated[str, typer.Option("--model", "-m", help="demo, a Janus' folder, or a size (random weights).")] = "demo",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the best that is here].")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of a step.")] = 12,
    group_size: Annotated[int, typer.Option(min=1, help="Drawings of each.")] = 8,
    guidance_scale: Annotated[float, typer.Option(help="Above 1: transformers draws with guidance alone.")] = 2.5,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the codes.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of trials; the median of their ratios is reported.")] = 3,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = (
        Path("runs/bench/rollouts.json")
    ),
) -> None:
    """How many drawings a second GRPO gets of its own model, against transformers' generate.

    \b
    Example:
      unimm bench rollouts --model demo --prompts 12 --group-size 8 --repeats 5
    """
    from unimm.cli.bench.rollouts import run

    run(model, (device, dtype), (prompts, group_size), (guidance_scale, temperature), repeats, out)


@bench.command()
def train(
    model: Annotated[
        str, typer.Option("--model", "-m", help="demo, a size by name, with random weights, or a Janus' folder.")
    ] = "demo",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the best that is here].")] = None,
    precision: Annotated[str, typer.Option(help="bf16, or no for float32.")] = "bf16",
    samples: Annotated[int, typer.Option(min=1, help="Conversations a step.")] = 32,
    positions: Annotated[int, typer.Option(min=1, help="Row length that unimm packs them into.")] = 3072,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured.")] = 30,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before them.")] = 10,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile, and time transformers a second time, compiled.")
    ] = True,
    attention: Annotated[
        list[str] | None,
        typer.Option(help="Time unimm with another attention backend too: sdpa, documents, flex_attention; repeat it."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Trials of each; the median is reported.")] = 1,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON; a plot lies beside it.")] = (
        Path("runs/bench/train.json")
    ),
) -> None:
    """How fast a model learns to see, against transformers' Trainer, in real tokens: packed, unpacked, compiled.

    \b
    Example:
      unimm bench train --model demo
    """
    from unimm.cli.bench.train import run

    run(model, device, precision, (samples, positions, steps, warm_up), compiled, attention or [], repeats, out)


@bench.command()
def pretrain(
    model: Annotated[str, typer.Option("--model", "-m", help="A size by name; its weights are random.")] = "janus_pro_1b",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the best that is here].")] = None,
    precision: Annotated[str, typer.Option(help="bf16, or no for float32.")] = "bf16",
    positions: Annotated[int, typer.Option(min=1, help="Of a row.")] = 4096,
    rows: Annotated[int, typer.Option(min=1, help="Of a step.")] = 32,
    micro_batches: Annotated[int, typer.Option(min=1, help="Forward passes that a step is cut into.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured.")] = 20,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before them; workers make four batches ahead.")] = 20,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the layers.")] = True,
    attention: Annotated[str, typer.Option(help="auto, sdpa, documents or flex_attention.")] = "auto",
    activation_checkpointing: Annotated[str, typer.Option(help="none, selective or full.")] = "none",
    workers: Annotated[int, typer.Option(min=0, help="Processes that load data.")] = 4,
    peak_tflops: Annotated[
        float | None, typer.Option(min=1e-3, help="Of the device, for MFU [default: of known GPUs, by their names].")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time goes: products, attention, ...")] = False,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = Path(
        "runs/bench/pretrain.json"
    ),
) -> None:
    """How much of a device a joint pretraining uses (MFU), and how long it waits for data: Janus' stage II, random weights.

    \b
    Examples:
      unimm bench pretrain --model tiny --device cpu --positions 1024 --rows 6 --micro-batches 1 --workers 0
      unimm bench pretrain --model janus_pro_1b --profile --steps 3
    """
    from unimm.bench.pretrain import Setting
    from unimm.cli.bench.pretrain import run

    setting = Setting(
        num_positions=positions,
        num_rows=rows,
        num_micro_batches=micro_batches,
        num_steps=steps,
        num_warm_up=warm_up,
        precision=precision,
        compile=compiled,
        attention=attention,
        activation_checkpointing=activation_checkpointing,
        num_workers=workers,
        peak_tflops=peak_tflops,
    )
    run(model, device, setting, out, profile)


@bench.command()
def device(
    minutes: Annotated[float, typer.Option(min=0.1, help="For all of it, on the machine at hand.")] = 9.0,
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu with --toy.")] = "cuda",
    toy: Annotated[bool, typer.Option("--toy", help="Tiny sizes: to see that everything runs.")] = False,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write all of it as JSON, after each part.")] = Path(
        "runs/bench/device.json"
    ),
) -> None:
    """What is worth measuring on a GPU, in a few minutes: tests, drawing against transformers, quantized weights, MFU.

    In order of worth, each a process of its own that ends when its share of the time is over; what does not fit is skipped. The
    file is whole after each part: Ctrl-C or SIGTERM costs the part that runs. What a part has printed lies in OUT.parts. The
    exit code is 1 if a part failed or was not finished in its time.

    \b
    Examples:
      unimm bench device --minutes 9 --out runs/bench/h200.json
      unimm bench device --minutes 5 --device cpu --toy
    """
    from unimm.cli.bench.device import run

    run(minutes, device, toy, out)


@bench.command()
def serve(
    model: Annotated[str, typer.Option("--model", "-m", help="A Janus' folder or hub id, or demo.")] = "demo",
    device: Annotated[str | None, typer.Option(help="cuda, cuda:N or cpu [default: the best that is here].")] = None,
    dtype: Annotated[str, typer.Option(help="float32, in which a seed gives the same in any batch; bfloat16 or float16.")] = (
        "float32"
    ),
    clients: Annotated[int, typer.Option(min=1, help="At the same time.")] = 32,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of the load.")] = 180.0,
    disconnects: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of requests that are given up.")] = 0.1,
    peer_seconds: Annotated[float, typer.Option(min=0.0, help="Of the same load on the peer; 0: leave it out.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the requests, and of the clients' choices.")] = 0,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = Path(
        "runs/bench/serve.json"
    ),
) -> None:
    """Put `unimm serve` under load: are answers right, how long do clients wait, how many requests a second.

    Clients in a process of their own ask and draw, streamed or not; each answer is compared with the engine's own for its seed.
    The peer is a plain FastAPI server around transformers on the same weights, one request at a time. The exit code is 1 if an
    answer was wrong, a request failed, a row was lost, /health took over 250 ms (p99), or the peer is not 3 times slower.

    \b
    Examples:
      unimm bench serve
      unimm bench serve --seconds 30 --peer-seconds 0 --clients 8
    """
    from unimm.bench.serve import Setting
    from unimm.cli.bench.serve import run
    from unimm.runtime.devices import choose_device

    where = str(choose_device(device))
    run(Setting(model, where, dtype, clients, seconds, disconnects, peer_seconds, seed=seed), out)


@bench.command("serve-ray")
def serve_ray(
    model: Annotated[str, typer.Option("--model", "-m", help="A Janus' folder or hub id, or demo.")] = "demo",
    device: Annotated[str | None, typer.Option(help="cuda or cpu [default: the best that is here].")] = None,
    replicas: Annotated[int, typer.Option(min=2, help="Processes with an engine each.")] = 2,
    clients: Annotated[int, typer.Option(min=1, help="At the same time.")] = 16,
    seconds: Annotated[float, typer.Option(min=10.0, help="Of the load.")] = 60.0,
    scale: Annotated[bool, typer.Option("--scale", help="Kill none: Ray adds all but one, and removes them.")] = False,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = Path(
        "runs/bench/serve_ray.json"
    ),
) -> None:
    """Kill a replica of Ray Serve under load: what do clients notice, and how soon is there another.

    Needs the extra `ray`. The exit code is 1 if an answer was wrong, a request failed that the killed replica was not working
    on, or there were not as many replicas as there should be.

    \b
    Examples:
      unimm bench serve-ray --seconds 60
      unimm bench serve-ray --seconds 60 --scale
    """
    from unimm.bench.serve import Setting
    from unimm.cli.bench.serve import run_ray
    from unimm.runtime.devices import choose_device

    setting = Setting(model, str(choose_device(device)), "float32", clients, seconds, peer_seconds=0.0)
    run_ray(setting, replicas, scale, out)


@bench.command()
def data(
    records: Annotated[int, typer.Option(min=0, help="Of each of three forms; 0: leave it out.")] = 1_000_000,
    reads: Annotated[int, typer.Option(min=1, help="Records that are learned from, all over them.")] = 20_000,
    images: Annotated[int, typer.Option(min=0, help="Photographs that each pipeline loads; 0: leave it out.")] = 2_000,
    pairs: Annotated[int, typer.Option(min=1, help="Of trials in turns; the median of their ratios is reported.")] = 5,
    peer: Annotated[list[str] | None, typer.Option(help="webdataset or datasets; repeat it [default: both].")] = None,
    image_size: Annotated[int, typer.Option(min=16, help="Of the images that are made of photographs of 640x480.")] = 384,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the figures as JSON.")] = Path(
        "runs/bench/data.json"
    ),
) -> None:
    """What a million records of JSON lines, WebDataset and Parquet cost; images a second beside plain webdataset and datasets.

    The exit code is 1 if a loading process grows by 200 MB or starts in more than 10 s (an archive that was indexed before), or
    if images load at less than 0.95 of a peer's rate. Parquet is compared as well, without a bar: datasets copies it first.

    \b
    Examples:
      unimm bench data
      unimm bench data --images 0 --records 100000
    """
    from unimm.cli.bench.data import PEERS, Setting, run

    raise typer.Exit(0 if run(Setting(records, reads, images, pairs, peer or list(PEERS), image_size), out) else 1)


@bench.command()
def hostile(
    model: Annotated[str, typer.Option("--model", "-m", help="What to serve, as `unimm serve` takes it.")] = "demo",
    requests: Annotated[int, typer.Option(min=1, help="Written ones first; hypothesis makes the rest.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the order, and of what hypothesis makes.")] = 0,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Where to write what came of it as JSON.")] = Path(
        "runs/bench/hostile.json"
    ),
) -> None:
    """Whether `unimm serve` survives hostile requests: bombs, addresses of its own network, paths, broken and slow bodies, ...

    It runs in a process of its own. The exit code is 1 if a request was answered by 5xx or not at all, if an answer told of the
    server's inside, or if afterwards the server is not as before.

    \b
    Example:
      unimm bench hostile --requests 2000
    """
    from unimm.cli.bench.hostile import run

    raise typer.Exit(0 if run(model, requests, seed, out) else 1)
