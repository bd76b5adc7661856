"""Settings of a server: where it listens, whom it answers, and how much one request may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server. Limits hold for one request, and are checked before any work is done for it.

    host, port: where it listens; loopback by default, so that only this machine reaches it.
    api_key: what clients must send as `Authorization: Bearer ...`; None: everybody is answered.
    served_model_names: the names that requests may ask for; the first is the one that answers carry.
    page: serve the web page at /.
    allowed_origins: origins whose pages may call the server from a browser (CORS); none by default.
    max_body_bytes: of the HTTP body. max_pixels: of an image or a frame, before it is unpacked.
    max_images, max_videos: looked at in one request.
    max_video_seconds: of a video. max_video_frames: that the model looks at. max_video_pixels: of all frames together that are
        decoded on the way to these, of an animation a quarter of it. max_decoding_seconds: that this may take.
    max_characters: of all texts of a request together, counted before they reach the tokenizer.
    max_images_out: `n`, of answers and of drawings. max_new_tokens: of one answer; new_tokens: where a request names no limit.
    max_stops, max_stop_characters: stop strings, and the length of one.
    max_queue: answers and drawings, of all clients, that may run or wait; one more is refused with 429.
    deadline_seconds: after which a request is given up with 408. drain_seconds: that running requests get after SIGTERM.
    stuck_after: seconds without a step, while there is work, after which the engine counts as stuck (`/health` is 503).
    allowed_media_domains: hosts that images may be fetched from; none: only data: URIs are read.
    allowed_hosts: names that the Host header may give; none: any. `unimm serve` sets those of this machine where only this
        machine is served and no key is asked for: a web page could else reach it under a name of its own (DNS rebinding).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_names: tuple[str, ...] = ("unimm",)
    page: bool = True
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 2**20
    max_pixels: int = 25_000_000
    max_images: int = 16
    max_videos: int = 1
    max_video_seconds: float = 3600.0
    max_video_frames: int = 128
    max_video_pixels: int = 2_000_000_000
    max_decoding_seconds: float = 30.0
    max_characters: int = 50_000
    max_images_out: int = 10
    max_new_tokens: int = 4096
    new_tokens: int = 512
    max_stops: int = 16
    max_stop_characters: int = 256
    max_queue: int = 256
    deadline_seconds: float = 600.0
    drain_seconds: float = 30.0
    stuck_after: float = 60.0
    allowed_media_domains: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
