"""An OpenAI-compatible HTTP server around one engine. It asks the engine and knows no tensors; the engine knows no HTTP.

    create_app(engine, ServerSettings())     unimm.serve.app: all routes; `unimm serve` runs it with uvicorn

This package needs the extra `serve`; nothing else of unimm imports it.
"""
