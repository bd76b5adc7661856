"""The web page: ask, draw, compare, look inside; Gradio in the server's own application, with no code path of its own."""
