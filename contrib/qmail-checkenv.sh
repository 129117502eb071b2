#!/bin/sh
# qmail-checkenv.sh: CHECKENV's program for those who cannot, or will not, link greycheck's launcher to bin/qmail-checkenv.
#
#     greycheck install /usr/local/lib/greycheck
#     cp qmail-checkenv.sh /var/qmail/bin/qmail-checkenv
#
# It hands both arguments on as they came, lifts a soft limit that is too small for Python, and turns every failure of the program
# into a verdict: under CHECKENV a program that cannot start would stop all mail.
#
# It costs some starts of a shell more than the launcher alone. CHECKENV_PROGRAM in the environment names another launcher; its name
# must be qmail-checkenv, by which it tells an envelope from an operator's command.

PROGRAM=${CHECKENV_PROGRAM:-/usr/local/lib/greycheck/qmail-checkenv}

# What a check needs, in kilobytes, with room to spare.
NEEDED=65536

for kind in v d; do
    limit=$(ulimit -S -"$kind")
    if [ "$limit" != unlimited ] && [ "$limit" -lt "$NEEDED" ]; then
        ulimit -S -"$kind" "$NEEDED" 2>/dev/null || ulimit -S -"$kind" "$(ulimit -H -"$kind")"
    fi
done

# The shell's own complaints go nowhere: a log that is stuck must not hold the verdict. The program has the log as its 2.
case $PROGRAM in
    */qmail-checkenv)
        fault='not there, or no program'
        if [ -x "$PROGRAM" ]; then
            (
                (exec "$PROGRAM" "$@" 2>&3 3>&-)
                exit $?
            ) 3>&2 2>/dev/null
            code=$?
            case $code in
                0 | 100 | 101) exit "$code" ;;
            esac
            fault="exit code $code"
        fi
        ;;
    *) fault='its name is not qmail-checkenv' ;;
esac

case ${GREYCHECK_ON_ERROR:-accept} in
    [Dd][Ee][Ff][Ee][Rr]) verdict=defer code_on_error=101 ;;
    *) verdict=accept code_on_error=0 ;;
esac
# In the background, for the same reason, and without the connection, whose end the client would wait for.
(
    exec </dev/null >&2
    printf 'greycheck: %s reason=error error="%s: %s"\n' "$verdict" "$PROGRAM" "$fault"
) &
exit "$code_on_error"
