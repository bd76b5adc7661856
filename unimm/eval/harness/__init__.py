"""Plug-ins for evaluation harnesses: lmms-eval (images and text) and lm-evaluation-harness (text), both around one engine.

lmms_eval      the model of lmms-eval, found by its entry point: `lmms-eval --model unimm --model_args pretrained=demo ...`
lm_eval        the model of lm-evaluation-harness: `python -m unimm.eval.harness.lm_eval run --model unimm ...`
conversations  what both ask the engine, and needs neither
janus_prompts  the prompts of Janus' own numbers (VLMEvalKit's)
"""

from typing import Any


def lmms_eval_manifest() -> Any:
    """What the entry point gives: the names of the classes, which are imported when the model is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports] - lmms-eval itself asks

    return ModelManifest("unimm", f"{__name__}.lmms_eval.UnimmSimple", f"{__name__}.lmms_eval.Unimm")
