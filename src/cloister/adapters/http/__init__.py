"""HTTP/1.1 for the three services and their callers (docs/adr/0003-http.md). Importing this package imports nothing.

limits      what a stranger may make us hold, and for how long
buffers     page-aligned receive buffers that are kept and reused
head        request and response heads: httptools, and the checks it leaves to us (pure)
framing     where a body ends: Content-Length, chunked, end of stream (pure)
body        a body arriving: into one buffer, or through a window with backpressure
message     Request and Response as an application sees them
problem     errors as problem+json (RFC 9457), both ways
connection  one client's connection
server      listening, limits, draining
pool        connections kept open to origins
client      AsyncHttpClient
blocking    HttpClient: sockets and threads, no asyncio
proxy       HTTPS_PROXY and NO_PROXY
workers     processor-bound work off the loop, with a bound
"""
