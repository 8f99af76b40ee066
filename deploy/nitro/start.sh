#!/bin/sh
# Inside the enclave: vsock is the only way out, so socat carries bytes between it and Cloister. Everything that passes
# is sealed, or signed, or checked against a digest: the parent instance on the other end is nobody's friend.
#
# On the parent (CID 3), port by port: 8440 leads to the KeyService, 8450 to the model store, 8460 hands out the trust
# bundle once and closes; and `socat TCP-LISTEN:8441,fork VSOCK-CONNECT:<enclave CID>:8441` leads in.
set -eu

ip link set lo up
socat -u VSOCK-CONNECT:3:8460 CREATE:/run/bundle.cbor
socat TCP-LISTEN:8440,bind=127.0.0.1,fork,reuseaddr VSOCK-CONNECT:3:8440 &
socat TCP-LISTEN:8450,bind=127.0.0.1,fork,reuseaddr VSOCK-CONNECT:3:8450 &
socat VSOCK-LISTEN:8441,fork,reuseaddr UNIX-CONNECT:/run/cloister.sock &

exec python3 -I -m cloister runtime --listen unix:/run/cloister.sock --keyservice http://127.0.0.1:8440 \
    --store http://127.0.0.1:8450 --bundle /run/bundle.cbor --bundle-root "$BUNDLE_ROOT" --isolation per-user
