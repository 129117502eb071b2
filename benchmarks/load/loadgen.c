/* Bounded closed-loop load client for greylisting servers.
 *
 *  loadgen -p PROTO -a ADDR -c CONNS -n N -t MAXSEC
 *          -k KNOWNBASE:COUNT -e EARLYBASE:COUNT -b NEWBASE
 *          -w new|known|early|mixed  [-s seed] [-S servername]
 * PROTO: policy  (Postfix policy delegation, persistent connections)
 *        policy1 (same, one connection per request)
 *        greylistd (one connection per request, by design of that protocol)
 *        smtp    (one SMTP session per decision: connect/EHLO/MAIL/RCPT/QUIT)
 *        smtpp   (persistent SMTP session, MAIL/RCPT/RSET per decision)
 *        line    (persistent; "ip\0sender\0rcpt\n" -> 1 byte)
 *        line1   (same, one connection per request)
 * ADDR: unix:/path or host:port (127.0.0.1 only)
 * One blocking thread per connection.  Prints one JSON line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "triplet.h"

enum { P_POLICY, P_POLICY1, P_GREYLISTD, P_SMTP, P_SMTPP, P_LINE, P_LINE1 };
enum { W_NEW, W_KNOWN, W_EARLY, W_MIXED };
enum { A_PASS, A_DEFER, A_ERR };
static int proto, work, conns = 8;
static long total = 1000;
static double maxsec = 30;
static const char *addr;
static unsigned long kbase, kcount = 1, ebase, ecount = 1, nbase = 50000000;
static unsigned seed = 1;
static struct sockaddr_storage sa;
static socklen_t salen;
static int family;
static volatile long next_req;
static volatile long next_new;
static uint32_t *lat;
static volatile long done_n;
static double t_end;
static long tally[3][3]; /* [class][answer] */
static char errtext[512];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static int dial(void) {
    int fd = socket(family, SOCK_STREAM, 0), one = 1;
    if (fd < 0)
        return -1;
    struct timeval tv = {20, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    if (family == AF_INET)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (void *)&sa, salen) < 0) {
        int e = errno;
        close(fd);
        errno = e;
        return -1;
    }
    return fd;
}
static int wall(int fd, const char *b, size_t n) {
    while (n) {
        ssize_t r = send(fd, b, n, MSG_NOSIGNAL);
        if (r <= 0)
            return -1;
        b += r;
        n -= r;
    }
    return 0;
}
static int readline_code(int fd, char *buf,
                         int size) { /* read SMTP reply (maybe multi-line), return code */
    int n = 0;
    for (;;) {
        ssize_t r = recv(fd, buf + n, size - 1 - n, 0);
        if (r <= 0)
            return -1;
        n += r;
        buf[n] = 0;
        if (n >= 2 && buf[n - 1] == '\n') {
            char *p = memrchr(buf, '\n', n - 1);
            p = p ? p + 1 : buf;
            if (strlen(p) > 3 && p[3] == ' ')
                return atoi(p);
        }
        if (n >= size - 1)
            return -1;
    }
}
static int smtp_cmd(int fd, const char *c, char *buf, int size) {
    if (wall(fd, c, strlen(c)))
        return -1;
    return readline_code(fd, buf, size);
}

static int decide(int *fdp, const char *ip, const char *snd, const char *rcp, long id) {
    char b[2048], r[2048];
    int n, fd;
    switch (proto) {
    case P_POLICY:
    case P_POLICY1:
        if (*fdp < 0 && (*fdp = dial()) < 0) {
            snprintf(errtext, sizeof errtext, "dial: %s", strerror(errno));
            return A_ERR;
        }
        fd = *fdp;
        n = snprintf(
            b, sizeof b,
            "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n"
            "client_address=%s\nclient_name=mail%ld.example.net\nclient_port=52430\nreverse_client_"
            "name=mail%ld.example.net\n"
            "server_address=127.0.0.1\nserver_port=25\nhelo_name=mail%ld.example.net\nsender=%"
            "s\nrecipient=%s\n"
            "recipient_count=0\nqueue_id=\ninstance=%lx.%lx.0\nsize=12345\netrn_domain=\nstress="
            "\nsasl_method=\n"
            "sasl_username=\nsasl_sender=\nccert_subject=\nccert_issuer=\nccert_fingerprint="
            "\nencryption_protocol=TLSv1.3\n"
            "encryption_cipher=TLS_AES_256_GCM_SHA384\nencryption_keysize=256\npolicy_context=\n\n",
            ip, id, id, id, snd, rcp, id + 4096, (long)seed);
        if (wall(fd, b, n)) {
            close(fd);
            *fdp = -1;
            return A_ERR;
        }
        n = 0;
        for (;;) {
            ssize_t k = recv(fd, r + n, sizeof r - 1 - n, 0);
            if (k <= 0) {
                if (n == 0)
                    snprintf(errtext, sizeof errtext, "recv: %s", k ? strerror(errno) : "EOF");
                close(fd);
                *fdp = -1;
                if (n == 0)
                    return A_ERR;
                break;
            }
            n += k;
            r[n] = 0;
            if (n > 1 && r[n - 1] == '\n' && r[n - 2] == '\n')
                break;
        }
        r[n] = 0;
        if (proto == P_POLICY1 && *fdp >= 0) {
            close(fd);
            *fdp = -1;
        }
        if (!strncasecmp(r, "action=", 7)) {
            char *a = r + 7;
            if (!strncasecmp(a, "dunno", 5) || !strncasecmp(a, "ok", 2) ||
                !strncasecmp(a, "prepend", 7))
                return A_PASS;
            if (!strncasecmp(a, "defer", 5) || a[0] == '4')
                return A_DEFER;
        }
        snprintf(errtext, sizeof errtext, "%.200s", r);
        return A_ERR;
    case P_GREYLISTD:
        if ((fd = dial()) < 0) {
            snprintf(errtext, sizeof errtext, "dial: %s", strerror(errno));
            return A_ERR;
        }
        n = snprintf(b, sizeof b, "--grey %s %s %s", ip, snd, rcp);
        if (wall(fd, b, n)) {
            close(fd);
            return A_ERR;
        }
        n = recv(fd, r, sizeof r - 1, 0);
        close(fd);
        if (n <= 0)
            return A_ERR;
        r[n] = 0;
        if (!strcmp(r, "false"))
            return A_PASS;
        if (!strcmp(r, "true"))
            return A_DEFER;
        snprintf(errtext, sizeof errtext, "%.200s", r);
        return A_ERR;
    case P_SMTP:
    case P_SMTPP:
        if (*fdp < 0) {
            if ((*fdp = dial()) < 0) {
                snprintf(errtext, sizeof errtext, "dial: %s", strerror(errno));
                return A_ERR;
            }
            if (readline_code(*fdp, r, sizeof r) != 220 ||
                smtp_cmd(*fdp, "EHLO client.example.net\r\n", r, sizeof r) != 250) {
                snprintf(errtext, sizeof errtext, "greet %.100s", r);
                close(*fdp);
                *fdp = -1;
                return A_ERR;
            }
        }
        fd = *fdp;
        snprintf(b, sizeof b, "MAIL FROM:<%s>\r\n", snd);
        n = smtp_cmd(fd, b, r, sizeof r);
        if (n != 250) {
            snprintf(errtext, sizeof errtext, "MAIL %d %.100s", n, r);
            close(fd);
            *fdp = -1;
            return A_ERR;
        }
        snprintf(b, sizeof b, "RCPT TO:<%s>\r\n", rcp);
        n = smtp_cmd(fd, b, r, sizeof r);
        if (n < 0) {
            snprintf(errtext, sizeof errtext, "RCPT %d", n);
            close(fd);
            *fdp = -1;
            return A_ERR;
        }
        if (proto == P_SMTP) {
            smtp_cmd(fd, "QUIT\r\n", b, sizeof b);
            close(fd);
            *fdp = -1;
        } else
            smtp_cmd(fd, "RSET\r\n", b, sizeof b);
        if (n == 250)
            return A_PASS;
        if (n / 100 == 4)
            return A_DEFER;
        snprintf(errtext, sizeof errtext, "RCPT %d %.100s", n, r);
        return A_ERR;
    case P_LINE:
    case P_LINE1:
        if (*fdp < 0 && (*fdp = dial()) < 0) {
            snprintf(errtext, sizeof errtext, "dial: %s", strerror(errno));
            return A_ERR;
        }
        fd = *fdp;
        n = snprintf(b, sizeof b, "%s%c%s%c%s\n", ip, 0, snd, 0, rcp);
        if (wall(fd, b, n)) {
            close(fd);
            *fdp = -1;
            return A_ERR;
        }
        n = recv(fd, r, 1, 0);
        if (n != 1) {
            close(fd);
            *fdp = -1;
            return A_ERR;
        }
        if (proto == P_LINE1) {
            close(fd);
            *fdp = -1;
        }
        return r[0] == '1' ? A_PASS : r[0] == '0' ? A_DEFER : A_ERR;
    }
    return A_ERR;
}

static void *worker(void *arg) {
    int fd = -1;
    char ip[64], snd[128], rcp[128];
    long errs = 0;
    (void)arg;
    for (;;) {
        long q = __sync_fetch_and_add(&next_req, 1);
        if (q >= total || now() > t_end || errs > 20)
            break;
        int cls = work;
        uint64_t h = mix((uint64_t)seed << 40 | q);
        if (work == W_MIXED) {
            unsigned p = h % 10;
            cls = p < 1 ? W_NEW : p < 7 ? W_KNOWN : W_EARLY;
        }
        unsigned long i;
        uint64_t h2 = mix(h);
        if (cls == W_NEW)
            i = nbase + __sync_fetch_and_add(&next_new, 1);
        else if (cls == W_KNOWN)
            i = kbase + h2 % kcount;
        else
            i = ebase + h2 % ecount;
        triplet(i, ip, snd, rcp);
        double t0 = now();
        int a = decide(&fd, ip, snd, rcp, q);
        double t1 = now();
        long d = __sync_fetch_and_add(&done_n, 1);
        lat[d] = (uint32_t)((t1 - t0) * 1e7); /* 0.1 us */
        __sync_fetch_and_add(&tally[cls][a], 1);
        if (a == A_ERR)
            errs++;
    }
    if (fd >= 0)
        close(fd);
    return NULL;
}
static int cmp(const void *a, const void *b) {
    uint32_t x = *(uint32_t *)a, y = *(uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    int o;
    static const char *pn[] = {"policy", "policy1", "greylistd", "smtp", "smtpp", "line", "line1"};
    static const char *wn[] = {"new", "known", "early", "mixed"};
    while ((o = getopt(argc, argv, "p:a:c:n:t:k:e:b:w:s:")) != -1)
        switch (o) {
        case 'p':
            for (proto = 0; proto < 7 && strcmp(pn[proto], optarg); proto++)
                ;
            if (proto == 7)
                return 2;
            break;
        case 'a':
            addr = optarg;
            break;
        case 'c':
            conns = atoi(optarg);
            break;
        case 'n':
            total = atol(optarg);
            break;
        case 't':
            maxsec = atof(optarg);
            break;
        case 'k':
            sscanf(optarg, "%lu:%lu", &kbase, &kcount);
            break;
        case 'e':
            sscanf(optarg, "%lu:%lu", &ebase, &ecount);
            break;
        case 'b':
            nbase = strtoul(optarg, 0, 10);
            break;
        case 'w':
            for (work = 0; work < 4 && strcmp(wn[work], optarg); work++)
                ;
            if (work == 4)
                return 2;
            break;
        case 's':
            seed = atoi(optarg);
            break;
        default:
            return 2;
        }
    if (!addr)
        return 2;
    if (!strncmp(addr, "unix:", 5)) {
        struct sockaddr_un *u = (void *)&sa;
        u->sun_family = family = AF_UNIX;
        strcpy(u->sun_path, addr + 5);
        salen = sizeof *u;
    } else {
        char h[64];
        int port;
        if (sscanf(addr, "%63[^:]:%d", h, &port) != 2)
            return 2;
        struct sockaddr_in *s = (void *)&sa;
        s->sin_family = family = AF_INET;
        s->sin_port = htons(port);
        inet_pton(AF_INET, h, &s->sin_addr);
        salen = sizeof *s;
    }
    lat = malloc(sizeof *lat * (total + 64));
    pthread_t th[512];
    if (conns > 512)
        conns = 512;
    double t0 = now();
    t_end = t0 + maxsec;
    for (int i = 0; i < conns; i++)
        pthread_create(&th[i], NULL, worker, NULL);
    for (int i = 0; i < conns; i++)
        pthread_join(th[i], NULL);
    double dt = now() - t0;
    struct rusage ru;
    getrusage(RUSAGE_SELF, &ru);
    long n = done_n;
    qsort(lat, n, sizeof *lat, cmp);
    long err = 0;
    for (int c = 0; c < 3; c++)
        err += tally[c][A_ERR];
#define Q(p) (n ? lat[(long)((n - 1) * (p))] / 10.0 : 0)
    printf("{\"proto\":\"%s\",\"w\":\"%s\",\"c\":%d,\"n\":%ld,\"sec\":%.4f,\"rate\":%.1f,\"p50us\":"
           "%.1f,\"p90us\":%.1f,\"p99us\":%.1f,\"p999us\":%.1f,\"maxus\":%.1f,\"err\":%ld,"
           "\"new_pass\":%ld,\"new_defer\":%ld,\"known_pass\":%ld,\"known_defer\":%ld,\"early_"
           "pass\":%ld,\"early_defer\":%ld,\"newused\":%ld,\"client_cpu\":%.3f",
           pn[proto], wn[work], conns, n, dt, n / dt, Q(.5), Q(.9), Q(.99), Q(.999), Q(1), err,
           tally[0][0], tally[0][1], tally[1][0], tally[1][1], tally[2][0], tally[2][1], next_new,
           ru.ru_utime.tv_sec + ru.ru_stime.tv_sec +
               (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) * 1e-6);
    if (err) {
        for (char *p = errtext; *p; p++)
            if (*p == '"' || *p == '\\' || (unsigned char)*p < 32)
                *p = ' ';
        printf(",\"errtext\":\"%s\"", errtext);
    }
    puts("}");
    return 0;
}
