"""How much faster one training step and one prediction are than the plain published formulation.

    python benchmarks/step.py --encoder mit-b0

Both networks carry the same weights, run in one process and alternate (A B A B), so that whatever
else the machine does meets both. Printed are medians and their ratio, in float32 and in bfloat16
autocast, and the largest difference of the logits. A step is: pseudo-labels of the unlabeled
slices, L2U paste, forward, losses, backward, SGD; a prediction is one slice. The plain network
lies in plain.py. `--compile` measures steps alone: both also by torch.compile, the plain network
whole, ours in its encoder (its decoder's end writes over a view in place, in a way that torch.compile refuses).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from plain import PlainNetwork
from torch import Tensor, nn

from sdm_cli.config import MethodConfig, ModelConfig, TrainConfig
from sdm_cli.method.difficulty import ClassDifficulty
from sdm_cli.method.encoder import ENCODER_SIZES
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.method.step import semi_supervised_step
from sdm_cli.runs.hardware import keep_freed_memory
from sdm_cli.runs.optimizer import make_optimizer

N_CLASSES = 4


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.keep_memory:
        keep_freed_memory()
    if options.compile:
        compiled = [benchmark_compiled(options, precision) for precision in ("float32", "bfloat16")]
        write(options, compiled)
        return
    results = []
    for benchmark in (benchmark_step, benchmark_prediction):
        exact = benchmark(options, "float32")
        rounded = benchmark(options, "bfloat16")
        rounded["ratio_to_plain_float32"] = exact["plain_s"] / rounded["sdm_s"]
        results += [exact, rounded]
        show(exact)
        show(rounded)
    write(options, results)


def write(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "json": None, "results": results}, indent=2))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=list(ENCODER_SIZES), default="mit-b0")
    parser.add_argument("--head-width", type=int, default=768, help="embedding width E of the decoder")
    parser.add_argument("--size", type=int, default=256, help="side of the training slices, pixels")
    parser.add_argument("--predict-size", type=int, default=512, help="side of the predicted slice, pixels")
    parser.add_argument("--pairs", type=int, default=2, help="labeled + unlabeled pairs a step")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep-memory", action="store_true", help="with the allocator setting of sdm train on a CPU")
    parser.add_argument("--compile", action="store_true", help="steps with and without torch.compile")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def build_both(options: argparse.Namespace, **changes: float) -> tuple[PlainNetwork, MessengerNetwork]:
    torch.manual_seed(0)
    sizes, config = ENCODER_SIZES[options.encoder], ModelConfig(head_width=options.head_width, **changes)
    fast, plain = MessengerNetwork(sizes, config, N_CLASSES), PlainNetwork(sizes, config, N_CLASSES)
    plain.load_state_dict(fast.state_dict())
    return plain, fast


def benchmark_step(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    plain, fast = build_both(options)
    batch = random_batch(options)
    plain_s, fast_s = alternate(
        [plain_step(plain, precision, *batch), fast_step(fast, precision, *batch)], options.rounds
    )
    return {
        "what": f"training step, {options.encoder}, {options.pairs} + {options.pairs} slices of {options.size}",
        "precision": precision,
        "plain_s": plain_s,
        "sdm_s": fast_s,
        "ratio": plain_s / fast_s,
        **training_difference(options, precision, batch[0], batch[2]),
    }


def benchmark_compiled(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Both networks, each also compiled; compiling is in the warm-up, whose seconds are printed."""
    (plain, fast), (plain_compiled, fast_compiled) = build_both(options), build_both(options)
    batch = random_batch(options)
    plain_compiled.forward = torch.compile(plain_compiled.forward, dynamic=False)
    plain_compiled.predict = torch.compile(plain_compiled.predict, dynamic=False)
    # It sees two numbers of slices, as the plain network's two methods do; one graph each, none for any number.
    fast_compiled.backbone.compile(dynamic=False)
    steps = [
        *(plain_step(network, precision, *batch) for network in (plain, plain_compiled)),
        *(fast_step(network, precision, *batch) for network in (fast, fast_compiled)),
    ]
    compiling_s = []
    for step in (steps[1], steps[3]):
        start = time.perf_counter()
        step()
        compiling_s.append(time.perf_counter() - start)
    names = ("plain_s", "plain_compiled_s", "sdm_s", "sdm_compiled_s")
    result = dict(zip(names, alternate(steps, options.rounds), strict=True))
    print(
        f"training step, {options.encoder}, {precision}: plain {result['plain_s']:.3f} s, compiled "
        f"{result['plain_compiled_s']:.3f} s; sdm {result['sdm_s']:.3f} s, encoder compiled "
        f"{result['sdm_compiled_s']:.3f} s; compiling took {compiling_s[0]:.0f} s and {compiling_s[1]:.0f} s",
        flush=True,
    )
    return {"encoder": options.encoder, "precision": precision, **result, "compiling_s": compiling_s}


def random_batch(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Labeled slices, their label and unlabeled slices."""
    labeled, unlabeled = torch.rand(2, options.pairs, 1, options.size, options.size)
    return labeled, torch.randint(N_CLASSES, (options.pairs, options.size, options.size)), unlabeled


def plain_step(network: PlainNetwork, precision: str, *batch: Tensor) -> Callable[[], None]:
    return training_step(network, network.predict, published_optimizer(network), precision, *batch)


def fast_step(network: MessengerNetwork, precision: str, *batch: Tensor) -> Callable[[], None]:
    optimizer = make_optimizer(network, TrainConfig())
    return training_step(network, lambda images: network.predict(images, "batch"), optimizer, precision, *batch)


def training_difference(
    options: argparse.Namespace, precision: str, labeled: Tensor, unlabeled: Tensor
) -> dict[str, float]:
    """Logits of both networks in training mode, with nothing dropped."""
    both = build_both(options, messenger_dropout=0.0, head_dropout=0.0, drop_path=0.0)
    with torch.no_grad(), autocast(precision):
        plain, fast = (torch.cat(network.train()(labeled, unlabeled)).float() for network in both)
    return {"largest_difference": (plain - fast).abs().max().item(), "largest_logit": plain.abs().max().item()}


def benchmark_prediction(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    plain, fast = (network.eval() for network in build_both(options))
    image = torch.rand(1, 1, options.predict_size, options.predict_size)

    def prediction(network: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode(), autocast(precision):
                return network.predict(image)

        return run

    runs = [prediction(plain), prediction(fast)]
    plain_logits, fast_logits = (run().float() for run in runs)
    plain_s, fast_s = alternate(runs, options.rounds)
    return {
        "what": f"prediction, {options.encoder}, one slice of {options.predict_size}",
        "precision": precision,
        "plain_s": plain_s,
        "sdm_s": fast_s,
        "ratio": plain_s / fast_s,
        "largest_difference": (plain_logits - fast_logits).abs().max().item(),
        "largest_logit": plain_logits.abs().max().item(),
    }


def published_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)


def training_step(
    network: nn.Module,
    predict: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    precision: str,
    labeled: Tensor,
    target: Tensor,
    unlabeled: Tensor,
) -> Callable[[], None]:
    """A whole step on one batch; everything but the network and its optimiser is shared."""
    config = MethodConfig(patch=labeled.shape[-1] // 8)
    difficulty = ClassDifficulty(N_CLASSES, config.difficulty_steps)
    paste = torch.full((len(labeled), 2), 0.5)

    def make_pseudo_label(images: Tensor) -> Tensor:
        network.eval()
        with torch.no_grad():
            label = predict(images).argmax(1)
        network.train()
        return label

    def run() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            losses = semi_supervised_step(
                network,
                make_pseudo_label,
                labeled,
                target,
                unlabeled,
                paste,
                difficulty,
                config,
                labeled_only=False,
                has_messenger=True,
                sum_over_processes=lambda counts: counts,
            )
        losses.total.backward()
        optimizer.step()

    return run


def autocast(precision: str) -> torch.autocast | nullcontext[None]:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()


def alternate(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each run, taken in turns after one warm-up of each."""
    seconds: list[list[float]] = [[] for _ in runs]
    for measured in range(-1, rounds):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            if measured >= 0:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def show(result: dict[str, Any]) -> None:
    line = "{what}, {precision}: plain {plain_s:.3f} s, sdm {sdm_s:.3f} s, ratio {ratio:.2f}".format(**result)
    if "ratio_to_plain_float32" in result:
        line += " ({ratio_to_plain_float32:.2f} to plain float32)".format(**result)
    if "largest_difference" in result:
        line += ", largest difference {largest_difference:.1e} of logits up to {largest_logit:.2f}".format(**result)
    print(line, flush=True)


if __name__ == "__main__":
    main()
