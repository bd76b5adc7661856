"""Plug-ins for evaluation harnesses: lmms-eval (images and text) and lm-evaluation-harness (text), both around one engine.

lmms_eval      the model of lmms-eval, found by its entry point: `lmms-eval --model unimm --model_args pretrained=demo ...`
lm_eval        the model of lm-evaluation-harness: `python -m unimm.eval.harness.lm_eval run --model unimm ...`
conversations  what both ask the engine, and needs neither
janus_prompts  the prompts of Janus' own numbers (VLMEvalKit's)
"""
