"""Every format on disk: our own folders, `transformers`' Janus, DeepSeek's repositories, adapters; names of weights."""
