"""What is sent to a server to break it, and what it makes of it: `unimm bench hostile`.

images, posts, connections, page     a written list
generated                            as many more as are asked for, of hypothesis
storm                                sends them, and judges each answer and the server after them
"""
