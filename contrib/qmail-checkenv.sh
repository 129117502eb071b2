#!/bin/sh
# qmail-checkenv.sh: CHECKENV's program for those who cannot, or will not, link greycheck's
# launcher to bin/qmail-checkenv.
#
#     greycheck install /usr/local/lib/greycheck
#     cp qmail-checkenv.sh /var/qmail/bin/qmail-checkenv
#
# It hands both arguments on as they came, lifts a soft limit that is too small for Python, and
# turns every failure of the program into a verdict: under CHECKENV a program that cannot start
# would stop all mail.
#
# It costs some starts of a shell and of sleep more than the launcher alone. CHECKENV_PROGRAM in
# the environment names another launcher; its name must be qmail-checkenv, by which it tells an
# envelope from an operator's command.

PROGRAM=${CHECKENV_PROGRAM:-/usr/local/lib/greycheck/qmail-checkenv}

# What a check needs, in kilobytes, with room to spare.
NEEDED=65536

case ${GREYCHECK_ON_ERROR:-accept} in
    [Dd][Ee][Ff][Ee][Rr]) verdict=defer code=101 ;;
    *) verdict=accept code=0 ;;
esac
# Whatever ends this shell, it ends in a verdict.
trap 'exit "$code"' EXIT

# The log becomes 3, which may be closed. Nothing else has it, or the connection: neither the
# shell's own complaints nor the program write where a log that is stuck could hold them.
if (: 3>&2); then exec 3>&2; else exec 3>/dev/null; fi
exec </dev/null >/dev/null 2>&1

for kind in v d; do
    limit=$(ulimit -S -"$kind")
    if [ "$limit" != unlimited ] && [ "$limit" -lt "$NEEDED" ]; then
        ulimit -S -"$kind" "$NEEDED" || ulimit -S -"$kind" "$(ulimit -H -"$kind")"
    fi
done

said=
fault=
case $PROGRAM in
    */qmail-checkenv)
        if [ -x "$PROGRAM" ]; then
            said=$(exec "$PROGRAM" "$@" 2>&1 >/dev/null 3>&-)
            ended=$?
            case $ended in
                0 | 100 | 101) code=$ended ;;
                *) fault="exit code $ended" ;;
            esac
        else
            fault='not there, or no program'
        fi
        ;;
    *) fault='its name is not qmail-checkenv' ;;
esac
if [ -n "$fault" ]; then
    said="$said${said:+
}greycheck: $verdict reason=error error=\"$PROGRAM: $fault\""
fi

# The log is written in the background, and for a second at most.
if [ -n "$said" ]; then
    (
        printf '%s\n' "$said" >&3 &
        writer=$!
        exec 3>&-
        (sleep 1 && kill -9 "$writer") &
        wait "$writer"
        kill -9 "$!"
    ) &
fi
exit "$code"
