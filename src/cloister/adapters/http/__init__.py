"""HTTP/1.1 for the three services and their callers (docs/adr/0003-http.md). Importing this package imports nothing.

limits      what a stranger may make us hold, and for how long
buffers     page-aligned receive buffers that are kept and reused
head        request and response heads: httptools, and the checks it leaves to us (pure)
framing     where a body ends: Content-Length, chunked, end of stream (pure)
body        a body arriving: into one buffer, or through a window with backpressure
content     what a body is given as
message     Request and Response as an application sees them
problem     errors as problem+json (RFC 9457), both ways
connection  one client's connection
server      listening, limits, draining
tls         a server's certificate
origin      addresses; HTTPS_PROXY and NO_PROXY
answer      what both clients share
tunnel      what a proxy says to CONNECT (pure)
dial, link  connections of the asynchronous client
client      AsyncHttpClient
blocking    HttpClient: sockets and threads; imports neither asyncio nor ssl
forward     a request passed on, bodies as they come
workers     processor-bound work off the loop, with a bound
"""
