"""`unimm data prefer`: pairs of a chosen and a rejected drawing or answer, made by a model and a judge, without people."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unimm.cli.options import Device, Dtype, Model

CALL_SECONDS = 600.0
"""A judge has so long for one prompt."""


def prefer(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS", help="shapes (to draw), captions (images of shapes to describe), or a .txt or .jsonl."
        ),
    ] = "shapes",
    model: Model = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="checker, caption, vqa_score, look_again, vqa_score:FOLDER, clip_score:FOLDER, digit, or pkg.module:function "
            "[default: vqa_score of the model itself for drawings, look_again for answers]."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder that is written, and gone on with.")] = Path("runs/preferences"),
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="So many prompts [default: 1,000 of a world, all of a file].")
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Drawings or answers a prompt.")] = 8,
    near_misses: Annotated[
        int, typer.Option(min=0, max=5, help="Pictures of so many near misses by each of replace, swap and drop, a prompt.")
    ] = 0,
    both_directions: Annotated[
        bool, typer.Option("--both-directions", help="Also ask about the pictures of near misses: pairs of yes and no.")
    ] = False,
    margin: Annotated[float, typer.Option(help="How much better the best must be than the worst.")] = 0.2,
    min_best: Annotated[float, typer.Option(help="How good the best must be.")] = 0.5,
    pairs_a_prompt: Annotated[int, typer.Option("--pairs", min=1, help="So many pairs a prompt, at most.")] = 1,
    temperature: Annotated[float, typer.Option(help="Of sampling; 1 gives worse ones, too.")] = 1.0,
    guidance_scale: Annotated[float | None, typer.Option(help="Of drawing [default: the model's own].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and noise.")] = 0,
    language: Annotated[str, typer.Option(help="Of prompts in a file that name none.")] = "en",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make a set of preferences: several drawings or answers a prompt, of which a judge takes the best and the worst.

    `unimm train objective=simpo data=preferences data.paths=OUT/preferences.jsonl` learns from it. Stopped at any time, it
    goes on with the same command.

    \b
    Examples:
      unimm data prefer shapes --judge checker --limit 400 --near-misses 1 --both-directions --out runs/pairs
      unimm data prefer prompts.txt --model FOLDER --margin 0.3
      unimm data prefer captions --judge look_again --out runs/captions
    """
    from unimm.checkpoints.image_tokenizer_folder import fingerprint
    from unimm.cli.options import open_model
    from unimm.precompute.pass_progress import images_progress
    from unimm.rewards.guarded import GuardedReward
    from unimm.rewards.names import build_reward
    from unimm.rewards.pair_folder import PREFERENCES, make_pairs
    from unimm.rewards.pair_prompts import read_prompts
    from unimm.rewards.pairs import PairMaker, PairSettings

    words = {"temperature": temperature, "guidance_scale": guidance_scale, "seed": seed, "both_directions": both_directions}
    settings = PairSettings(num_samples, near_misses, margin, min_best, pairs_a_prompt, **words)
    asked = read_prompts(prompts, limit, seed, language)
    name = judge or ("vqa_score" if asked[0].image is None else "look_again")
    engine = open_model(model, device, dtype, None)
    reward = GuardedReward(name, build_reward(name, lambda: engine, device), CALL_SECONDS)
    listed = json.dumps([(one.key, one.prompt, one.language) for one in asked]).encode()
    told = {"prompts": prompts, "prompts_hash": hashlib.sha256(listed).hexdigest()[:16], "judge": name}
    told |= {"model": engine.model_hash, "dtype": str(next(engine.model.parameters()).dtype)}
    tokenizer = fingerprint(engine.image_tokenizer) if asked[0].image is None else ""

    def progress(title: str, total: int):
        return images_progress(title, total, unit="prompts")

    counts = make_pairs(asked, PairMaker(engine, reward, settings), out, told, tokenizer, progress)
    _print(counts, out, reward.reasons, PREFERENCES)


def _print(counts: dict[str, int], out: Path, failures: dict[str, int], name: str) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{out}: {counts.pop('pairs'):,} pairs of {counts.pop('prompts'):,} prompts, in {counts.pop('lines'):,} lines"
    )
    for reason, count in counts.items():
        console.print(f"  {count:,} prompts without: {reason}")
    for reason, count in failures.items():
        console.print(f"  the judge failed {count:,} times: {reason}")
    console.print(
        f"Learn from it: unimm train objective=simpo stage=finetune init_from=MODEL data=preferences data.paths={out / name}"
    )
