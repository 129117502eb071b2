#!/bin/sh
# qmail-checkenv.sh: CHECKENV's program for those who cannot, or will not, link greycheck's launcher to bin/qmail-checkenv.
#
# Copy it to bin/qmail-checkenv below the qmail home and set PROGRAM to the qmail-checkenv that `greycheck install DIR` put into DIR.
# It hands both arguments on as they came, lifts a soft limit that is too small for Python, and turns every failure of the program
# into a verdict: under CHECKENV a program that cannot start would stop all mail.
#
# It costs two starts of a shell more than the launcher alone.

PROGRAM=${GREYCHECK_PROGRAM:-/usr/local/lib/greycheck/qmail-checkenv}

# What a check needs, in kilobytes, with room to spare.
NEEDED=65536

for kind in v d; do
    limit=$(ulimit -S -"$kind")
    if [ "$limit" != unlimited ] && [ "$limit" -lt "$NEEDED" ]; then
        ulimit -S -"$kind" "$NEEDED" 2>/dev/null || ulimit -S -"$kind" "$(ulimit -H -"$kind")"
    fi
done

"$PROGRAM" "$@"
code=$?
case $code in
    0 | 100 | 101) exit $code ;;
esac

case ${GREYCHECK_ON_ERROR:-accept} in
    defer) verdict=defer code_on_error=101 ;;
    *) verdict=accept code_on_error=0 ;;
esac
# In the background: a log that is stuck must not hold the verdict.
printf 'greycheck: %s reason=error error="%s: exit code %s"\n' "$verdict" "$PROGRAM" "$code" >&2 </dev/null &
exit $code_on_error
