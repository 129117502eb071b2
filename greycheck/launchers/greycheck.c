/* A launcher in C. It asks the resident, and without an answer becomes the launcher in Python.
 *
 * A mail server runs it once per RCPT TO, as one of the programs below, and acts on its exit code,
 * or on what some of them print on descriptor 1. It never touches descriptor 0, nor 1 as another
 * program. It is forked for every recipient, and each system call counts: no stdio, no malloc, no
 * clock but the one that is read without a system call (vdso(7)) before the resident has failed.
 *
 * Compiled in:
 *   SOCKET     where the resident listens
 *   PATIENCE   how long it may take to answer, in seconds
 *   LAUNCHERS  the directory of the launchers in Python
 *   MARK       by which greycheck's commands know this program again
 *   PROGRAMS   the table of the programs, from the records of the hooks (native.table)
 *
 * Diagnostics, on descriptor 2: a line if the resident gave no answer, and one if Python cannot be
 * had either. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST = 16384, ANSWER = 65536, LINE = 4096 /* PIPE_BUF */ };
enum { HELO = 255, SHOWN = 200, LONGEST_PATIENCE = 60 };

/* A note stands at the beginning of the file, where MARK is found without reading all of it. */
static const struct { unsigned name_size, size, type; char name[12], text[sizeof MARK]; }
note __attribute__((section(".note.greycheck"), used, aligned(4))) = {
    10, sizeof MARK, 1, "greycheck", MARK
};

/* A program, from the record of the hook that runs it:
 *   name, path  its name, and the launcher in Python that it becomes
 *   hook        the name of the hook
 *   client ...  the variable of each part of the envelope, empty for none
 *   arguments   argc; if it is 3, sender and recipient are the arguments
 *   codes       the exit codes that accept, defer and reject
 *   replies     what to print if the check fails, and is accepted or deferred; null if not read
 *   further     variables that are handed on under their own names, and a null */
static const struct program {
    const char *name, *path, *hook, *client, *host, *sender, *recipient, *helo;
    int arguments, codes[3];
    const char *replies[2];
    const char *const *further;
} programs[] = {PROGRAMS}, *program = programs;

enum { COUNT = sizeof programs / sizeof *programs };

extern char **environ;
static char **arguments, answer[ANSWER + 1];
static char text[REQUEST]; /* the request, later a line of the log */
static size_t length;
static int fits = 1;
static long long patience = PATIENCE; /* in seconds */
static long long left[2];             /* of that, in seconds and nanoseconds */

static void add(const char *some)
{
    size_t size = strlen(some);
    if (size > sizeof text - length) {
        fits = 0;
        return;
    }
    memcpy(text + length, some, size);
    length += size;
}

/* Adds a line to the request if there is a VALUE. With a line feed in it, it would be two. */
static void add_line(const char *name, const char *value)
{
    if (!value)
        return;
    fits = fits && !strchr(value, '\n');
    add(name);
    add(value);
    add("\n");
}

/* Adds a line to the request for the variable NAME, if it is set. */
static void add_variable(const char *name)
{
    const char *value = getenv(name);
    if (!value)
        return;
    add(name);
    add_line("=", value);
}

static const char *decimal(long long number)
{
    static char buffer[24];
    char *digit = buffer + sizeof buffer - 1;
    do
        *--digit = '0' + number % 10;
    while (number /= 10);
    return digit;
}

static int begins(const char *line, const char *with)
{
    return !strncmp(line, with, strlen(with));
}

/* --- the log, and what a hook reads ----------------------------------------------------------- */

static volatile sig_atomic_t rung;
static int is_armed;
static sigset_t mask;

static void ring(int number)
{
    (void)number;
    rung++;
}

/* Writes to a descriptor that may be closed, dead or stuck. All calls together wait 0.2 seconds at
 * most. Polling first would not do: others write to the same pipe, and may fill it after that. On a
 * busy machine the first alarm may come too soon; the second counts. */
static void put(int descriptor, const char *some, size_t size)
{
    static const struct itimerval alarms = {{0, 100000}, {0, 100000}};
    if (!is_armed) {
        struct sigaction action = {.sa_handler = ring};
        sigset_t all_others; /* SIGPIPE among them */
        sigfillset(&all_others);
        sigdelset(&all_others, SIGALRM);
        sigprocmask(SIG_SETMASK, &all_others, &mask);
        sigaction(SIGALRM, &action, NULL);
        setitimer(ITIMER_REAL, &alarms, NULL);
        is_armed = 1;
    }
    while (rung < 2 && write(descriptor, some, size) < 0 && errno == EINTR)
        ;
}

/* --- without the resident --------------------------------------------------------------------- */

static const char *reason(int error)
{
    static char other[32] = "error ";
    switch (error) {
    case ENOENT: return "not there";
    case EACCES: return "permission denied";
    case ECONNREFUSED: return "nobody listens there";
    case EAGAIN: return "too many wait there";
    case EPIPE: case ECONNRESET: return "closed without an answer";
    default: strcpy(other + 6, decimal(error)); return other;
    }
}

/* Ends as GREYCHECK_ON_ERROR says: there is no Python either, because of ERROR. */
static void give_up(int error)
{
    const char *on_error = getenv("GREYCHECK_ON_ERROR");
    int defers = on_error && strcasestr(on_error, "defer");
    const char *reply = program->replies[defers ? 1 : 0];
    if (reply && *reply)
        put(1, reply, strlen(reply));
    length = 0;
    add(defers ? "greycheck: defer" : "greycheck: accept");
    add(" reason=error error=\"");
    add(program->path);
    add(": ");
    add(reason(error));
    add("\"\n");
    put(2, text, length);
    _exit(program->codes[defers ? 1 : 0]);
}

/* Becomes the launcher in Python. Tells it when this began: its deadline counts from there. */
static void become_python(void)
{
    static const struct itimerval never;
    static char started[48] = "_GREYCHECK_STARTED=";
    const size_t name = strlen(started);
    size_t count = 1;
    struct timespec now;
    for (char **each = environ; *each; each++)
        count++;
    char *variables[count + 1], **next = variables;
    *next++ = started;
    for (char **each = environ; *each; each++)
        if (strncmp(*each, started, name))
            *next++ = *each;
    *next = NULL;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long waited = 1000 * patience - 1000 * left[0] - left[1] / 1000000;
    strcpy(started + name, decimal(1000LL * now.tv_sec + now.tv_nsec / 1000000 - waited));
    if (is_armed) {
        setitimer(ITIMER_REAL, &never, NULL);
        signal(SIGPIPE, SIG_IGN);
        sigprocmask(SIG_SETMASK, &mask, NULL);
        is_armed = 0;
    }
    execve(program->path, arguments, variables);
    give_up(errno);
}

/* Tells WHY the resident at PATH is not asked. */
static void warn(const char *path, const char *why)
{
    length = 0;
    add("greycheck: warning ");
    for (size_t each = 0; path[each] && each < SHOWN; each++)
        text[length++] = (unsigned char)path[each] < ' ' || path[each] == 127 ? '?' : path[each];
    add(": ");
    add(why);
    add(": checking without the resident\n");
    put(2, text, length);
}

/* --- with it ---------------------------------------------------------------------------------- */

static const char garbage[] = "its answer makes no sense";

/* An answer, taken apart. */
struct told {
    int code;          /* the exit code, -1 until there is one */
    const char *reply; /* what the hook reads, or null */
    size_t reply_size;
    char *lines, *end; /* lines for the log, one after another */
};

/* The exit code at the beginning of SOME text; -1 if it is none of the hook's. */
static int exit_code(const char *some)
{
    for (int each = 0; each < 3; each++) {
        const char *known = decimal(program->codes[each]);
        if (begins(some, known) && some[strlen(known)] == '\n')
            return program->codes[each];
    }
    return -1;
}

/* Puts the SIZE bytes of LINE behind the other lines for the log. */
static void keep_line(struct told *told, char *line, size_t size)
{
    if (!told->lines)
        told->lines = told->end = line;
    memmove(told->end, line, size);
    told->end += size;
}

/* Takes one LINE of an answer, of SIZE bytes; false if it makes no sense. */
static int take_line(struct told *told, char *line, size_t size)
{
    if (begins(line, "exit=") && told->code < 0) {
        told->code = exit_code(line + 5);
        return told->code >= 0;
    }
    if (begins(line, "say=") && program->replies[0] && !told->reply && !told->lines) {
        told->reply = line + 4;
        told->reply_size = size - 4;
        return 1;
    }
    if (begins(line, "log=")) {
        keep_line(told, line + 4, size - 4);
        return 1;
    }
    return begins(line, "action=");
}

/* Takes the answer of SIZE bytes apart; false if it makes no sense. */
static int understand(struct told *told, size_t size)
{
    char *line = answer;
    if (memchr(answer, '\0', size))
        return 0;
    while (*line != '\n') {
        char *next = strchr(line, '\n') + 1;
        if (!take_line(told, line, next - line))
            return 0;
        line = next;
    }
    return told->code >= 0 && line + 1 == answer + size;
}

/* Writes LINES, up to END, to the log: as many at once as a pipe takes in one piece. */
static void write_lines(const char *lines, const char *end)
{
    while (lines < end) {
        const char *last = end - lines > LINE ? memrchr(lines, '\n', LINE) : end - 1;
        size_t size = last ? last + 1 - lines : LINE;
        put(2, lines, size);
        lines += size;
    }
}

/* Ends as the answer of SIZE bytes says, or returns what is wrong with it. Does nothing before all
 * of it is understood. */
static const char *obey(size_t size)
{
    struct told told = {.code = -1};
    if (!understand(&told, size))
        return garbage;
    if (told.reply)
        put(1, told.reply, told.reply_size);
    write_lines(told.lines, told.end);
    _exit(told.code);
}

/* Waits until DESCRIPTOR is ready for EVENTS; false if that takes longer than what is left. Unlike
 * libc, the kernel subtracts the time from what is left. */
static int is_ready(int descriptor, short events)
{
    struct pollfd one = {descriptor, events, 0};
#ifndef SYS_ppoll_time64
#define SYS_ppoll_time64 SYS_ppoll
#endif
    return syscall(SYS_ppoll_time64, &one, 1, left, NULL, 0) > 0;
}

/* Asks the resident at PATH, and ends as it says; or tells why not. */
static const char *ask(const char *path)
{
    static const char late[] = "no answer in time";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (*path != '/' || strlen(path) >= sizeof address.sun_path)
        return "no absolute path, or too long";
    strcpy(address.sun_path, path);
    int low = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), descriptor = low;
    if (low >= 0 && low <= 2) { /* it was closed: what is written there must not be sent */
        descriptor = fcntl(low, F_DUPFD_CLOEXEC, 3);
        close(low);
    }
    if (descriptor < 0 || connect(descriptor, (struct sockaddr *)&address, sizeof address) < 0)
        return reason(errno);
    for (size_t sent = 0; sent < length;) {
        ssize_t done = send(descriptor, text + sent, length - sent, MSG_NOSIGNAL);
        if (done >= 0)
            sent += done;
        else if (errno != EAGAIN)
            return reason(errno);
        else if (!is_ready(descriptor, POLLOUT))
            return late;
    }
    size_t have = 0;
    while (have < 2 || memcmp(answer + have - 2, "\n\n", 2)) {
        if (have == ANSWER)
            return garbage;
        if (!is_ready(descriptor, POLLIN))
            return late;
        ssize_t done = recv(descriptor, answer + have, ANSWER - have, 0);
        if (done == 0)
            return have ? garbage : reason(ECONNRESET);
        if (done > 0)
            have += done;
        else if (errno != EAGAIN)
            return reason(errno);
    }
    return obey(have);
}

/* Makes the request; false if no hook called this, or if only Python can read the envelope. */
static int make_request(int count)
{
    const char *sender = getenv(program->sender), *recipient = getenv(program->recipient);
    const char *helo = getenv(program->helo);
    if (program->arguments == 3 && count == 3) {
        sender = arguments[1];
        recipient = arguments[2];
    }
    if (count != program->arguments || !getenv(program->client) || (!sender && !recipient))
        return 0;
    add("request=smtpd_access_policy\nprotocol_state=RCPT\n");
    add_line("greycheck_hook=", program->hook);
    add_line("greycheck_time=", decimal(time(NULL)));
    add_line("sender=", sender ? sender : "");
    add_line("recipient=", recipient ? recipient : "");
    add_line("helo_name=", helo && strlen(helo) <= HELO ? helo : NULL);
    add_line("client_address=", getenv(program->client));
    add_line("reverse_client_name=", getenv(program->host));
    for (const char *const *each = program->further; *each; each++)
        add_variable(*each);
    char **last = environ; /* of equal variables the first counts, of equal attributes the last */
    while (*last)
        last++;
    for (; last > environ; last--)
        if (begins(last[-1], "GREYCHECK") && strchr(last[-1], '='))
            add_line("", last[-1]);
    add("\n");
    return fits;
}

int main(int count, char **vector)
{
    const char *given = getenv("GREYCHECK_SOCKET_PATIENCE"), *path = getenv("GREYCHECK_SOCKET");
    const char *name = count ? strrchr(vector[0], '/') : NULL;
    name = name ? name + 1 : count ? vector[0] : "";
    for (const struct program *each = programs; each < programs + COUNT; each++)
        if (!strcmp(name, each->name))
            program = each;
    arguments = vector;
    long long seconds = 0;
    while (given && *given >= '0' && *given <= '9' && seconds <= LONGEST_PATIENCE)
        seconds = 10 * seconds + *given++ - '0';
    if (seconds && seconds <= LONGEST_PATIENCE && (!*given || !strcmp(given, "s")))
        patience = seconds;
    left[0] = patience;
    path = path ? path : SOCKET;
    if (*path && make_request(count))
        warn(path, ask(path));
    become_python();
}
