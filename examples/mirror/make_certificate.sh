#!/bin/sh
# Make a self-signed certificate for localhost, with its key in the same file, to try out the HTTPS
# frontend of haproxy.cfg. No clients trust it (curl -k), and it is not for other use.
# Usage: make_certificate.sh [FILE]
set -eu
umask 077
file=${1:-ssl-cert.pem}

openssl req -x509 -newkey rsa:2048 -nodes -days 30 \
    -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
    -keyout "$file.key" -out "$file.crt" 2>/dev/null
cat "$file.crt" "$file.key" >"$file"
rm "$file.crt" "$file.key"
echo "$file"
