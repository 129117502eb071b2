/* A launcher in C: it asks the resident, and where that gives no answer it becomes the launcher in Python.
 *
 * A mail server runs it once per RCPT TO, as one of the programs below, and acts on its exit code, or on what greycheck-spp prints on
 * descriptor 1. Descriptor 0 is never touched, nor is 1 by another program. It is forked for every recipient, and each system call counts:
 * no stdio, no malloc, no clock but the one that is read without a system call (vdso(7)) before the resident has failed.
 *
 * Compiled in: SOCKET, where the resident listens; PATIENCE, how long its answer may take, in seconds; LAUNCHERS, the directory of the
 * launchers in Python; MARK, by which greycheck's commands know this program again.
 *
 * Diagnostics, on descriptor 2: a line where the resident gave no answer, and one where Python cannot be had either. */
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

enum { REQUEST = 16384, ANSWER = 65536, LINE = 4096 /* PIPE_BUF */, HELO = 255, SHOWN = 200, LONGEST_PATIENCE = 60 };

/* A note stands at the beginning of the file, where MARK is found without reading all of it. */
static const struct { unsigned name_size, size, type; char name[12], text[sizeof MARK]; }
note __attribute__((section(".note.greycheck"), used, aligned(4))) = {10, sizeof MARK, 1, "greycheck", MARK};

/* Each program: the hook that runs it, where the envelope is, how many arguments it has, and what defers. */
static const struct program {
    const char *name, *path, *hook, *sender, *recipient, *helo;
    int arguments, code;
    const char *answer;
} programs[] = {
    {"greycheck", LAUNCHERS "/greycheck", "smtpextfork", "REMOTEMF", "REMOTERCPT", "REMOTEHELO", 1, 101, "exit=101\n"},
    {"qmail-checkenv", LAUNCHERS "/qmail-checkenv", "checkenv", "", "", "", 3, 101, "exit=101\n"},
    {"greycheck-rcptcheck", LAUNCHERS "/greycheck-rcptcheck", "rcptcheck", "SENDER", "RECIPIENT", "", 1, 111, "exit=111\n"},
    {"greycheck-spp", LAUNCHERS "/greycheck-spp", "spp", "SMTPMAILFROM", "SMTPRCPTTO", "SMTPHELOHOST", 1, 0, "exit=0\n"},
}, *program = programs, *const spp = programs + 3;

/* Attributes of a request, and the variables that they are; all but four only qmail-spp's. */
static const char *const copied[][2] = {
    {"client_address=", "TCPREMOTEIP"}, {"reverse_client_name=", "TCPREMOTEHOST"},
    {"RELAYCLIENT=", "RELAYCLIENT"}, {"SMTPAUTHUSER=", "SMTPAUTHUSER"},
    {"SMTPRCPTCOUNT=", "SMTPRCPTCOUNT"}, {"SMTPRCPTCOUNTALL=", "SMTPRCPTCOUNTALL"},
    {"SMTPRCPTHOSTSOK=", "SMTPRCPTHOSTSOK"}, {"TCPREMOTEPORT=", "TCPREMOTEPORT"},
};

extern char **environ;
static char **arguments, text[REQUEST] /* the request, later a line of the log */, answer[ANSWER + 1];
static size_t length;
static int fits = 1;
static long long patience = PATIENCE, left[2]; /* seconds; and what is left of them, in seconds and nanoseconds */

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

/* A line of the request, if there is a VALUE. One with a line feed in it would be two attributes. */
static void add_line(const char *name, const char *value)
{
    if (!value)
        return;
    fits = fits && !strchr(value, '\n');
    add(name);
    add(value);
    add("\n");
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

/* --- the log, and what qmail-spp reads ------------------------------------------------------------------------------------------------ */

static volatile sig_atomic_t rung;
static int is_armed;
static sigset_t mask;

static void ring(int number)
{
    (void)number;
    rung++;
}

/* Writes to a descriptor that may be closed, dead or stuck; waits 0.2 seconds at most, all calls together. To ask poll first would not do:
 * others write to the same pipe, and may fill it after that. On a busy machine the first alarm may come too soon; the second counts. */
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

/* --- without the resident ------------------------------------------------------------------------------------------------------------- */

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

/* The last resort, where there is no Python, because of ERROR: what GREYCHECK_ON_ERROR says. */
static void give_up(int error)
{
    static const char refusal[] = "E451 temporary failure, please try again later (#4.3.0)\n";
    const char *on_error = getenv("GREYCHECK_ON_ERROR");
    int defers = on_error && strcasestr(on_error, "defer");
    if (defers && program == spp)
        put(1, refusal, sizeof refusal - 1);
    length = 0;
    add(defers ? "greycheck: defer reason=error error=\"" : "greycheck: accept reason=error error=\"");
    add(program->path);
    add(": ");
    add(reason(error));
    add("\"\n");
    put(2, text, length);
    _exit(defers ? program->code : 0);
}

/* Becomes the launcher in Python, and tells it when this began, since its deadline counts from there. */
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

/* --- with it -------------------------------------------------------------------------------------------------------------------------- */

static const char garbage[] = "its answer makes no sense";

/* The exit code that LINE of an answer says, if it is one that the hook knows; else -1. */
static int exit_code(const char *line)
{
    if (begins(line, "exit=0\n"))
        return 0;
    if (begins(line, program->answer))
        return program->code;
    return program != spp && begins(line, "exit=100\n") ? 100 : -1;
}

/* Ends as an answer of SIZE bytes says, or tells what it is. Nothing is done before all of it is understood. */
static const char *obey(size_t size)
{
    char *line = answer, *say = NULL, *lines = NULL, *end = NULL;
    size_t said = 0, rest;
    int code = -1;
    if (memchr(answer, '\0', size))
        return garbage;
    for (; *line != '\n'; line += rest) {
        rest = strchr(line, '\n') + 1 - line;
        if (begins(line, "exit=") && code < 0) {
            if ((code = exit_code(line)) < 0)
                return garbage;
        } else if (begins(line, "say=") && program == spp && !say && !lines) {
            say = line + 4;
            said = rest - 4;
        } else if (begins(line, "log=")) /* moved together, to be written at once */
            end = (char *)memmove(lines ? end : (lines = line), line + 4, rest - 4) + rest - 4;
        else if (!begins(line, "action="))
            return garbage;
    }
    if (code < 0 || line + 1 != answer + size)
        return garbage;
    if (say)
        put(1, say, said);
    for (; lines < end; lines += rest) { /* as many lines at once as no pipe takes apart */
        char *last = end - lines > LINE ? memrchr(lines, '\n', LINE) : end - 1;
        rest = last ? last + 1 - lines : LINE;
        put(2, lines, rest);
    }
    _exit(code);
}

/* Whether DESCRIPTOR is ready for EVENTS while there is patience. Unlike libc, the kernel takes what was waited off what is left. */
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
    if (low >= 0 && low <= 2) { /* that was closed, and what is written there must not reach the resident */
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

/* Makes the request; false where the resident is not to be asked: no hook called this, or its envelope is for Python alone. */
static int make_request(int count)
{
    const char *sender = getenv(program->sender), *recipient = getenv(program->recipient), *helo = getenv(program->helo);
    if (program->arguments == 3 && count == 3) {
        sender = arguments[1];
        recipient = arguments[2];
    }
    if (count != program->arguments || !getenv("TCPREMOTEIP") || (!sender && !recipient))
        return 0;
    add("request=smtpd_access_policy\nprotocol_state=RCPT\n");
    add_line("greycheck_hook=", program->hook);
    add_line("greycheck_time=", decimal(time(NULL)));
    add_line("sender=", sender ? sender : "");
    add_line("recipient=", recipient ? recipient : "");
    add_line("helo_name=", helo && strlen(helo) <= HELO ? helo : NULL);
    for (int each = 0; each < (program == spp ? 8 : 4); each++)
        add_line(copied[each][0], getenv(copied[each][1]));
    char **last = environ; /* of two variables with one name the first counts, and of two attributes the last */
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
    for (const struct program *each = programs; each <= spp; each++)
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
