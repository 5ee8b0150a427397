/* The file that a runtime executes in the place of a CNI plugin or of netavark. It hands what it was given to Atoll's daemon, which it
 * starts if there is none, and does what the answer says: print it and end, or turn into the program that stood here before.
 *
 * The messages are those of call.py; forward.py does the same where no compiler is. forwarder.py compiles this with
 *   DOOR "cni", "netavark" or "plugin"   RUN, STATE  the daemon's folders   PYTHON  its interpreter
 *   OTHERWISE  what to turn into for a user who has no daemon here, or ""   PATIENCE  seconds for an answer
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST (16u << 20)
#define STARTING 45
#define ATTEMPTS 3

enum { IO_FAILED = 5, TRY_AGAIN = 11 }; /* CNI's error codes (spec, section 5) */

/* forwarder.py looks for this to tell our files from others. */
static const char marker[] __attribute__((used)) = "atoll forwarder of the door " DOOR "\n";

extern char **environ;

struct bytes {
    char *data;
    size_t size, room;
};

static void fail(int code, const char *what, const char *more);

static void append(struct bytes *to, const void *data, size_t size)
{
    if (to->room - to->size < size) {
        if (size > MOST || to->size > MOST)
            exit(1);
        to->room = 2 * (to->size + size) + 4096;
        if (!(to->data = realloc(to->data, to->room)))
            exit(1);
    }
    memcpy(to->data + to->size, data, size);
    to->size += size;
}

static void append_number(struct bytes *to, uint32_t number)
{
    append(to, (unsigned char[]){number >> 24, number >> 16, number >> 8, number}, 4);
}

static void append_field(struct bytes *to, const void *data, size_t size)
{
    append_number(to, size);
    append(to, data, size);
}

static void append_text(struct bytes *to, const char *text)
{
    append_field(to, text, strlen(text));
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t done = write(fd, data, size);
        if (done < 0 && errno != EINTR)
            return -1;
        if (done > 0)
            data += done, size -= done;
    }
    return 0;
}

/* --- an error, in the client's own form ----------------------------------------------------------------------------------------- */

static void append_json(struct bytes *to, const char *text)
{
    for (; *text; text++) {
        char escaped[8];
        unsigned char byte = *text;
        if (byte < 32 || byte == '"' || byte == '\\' || byte == 127)
            append(to, escaped, snprintf(escaped, sizeof escaped, "\\u%04x", byte));
        else
            append(to, byte < 127 ? text : "?", 1);
    }
}

static void fail(int code, const char *what, const char *more)
{
    struct bytes out = {0};
    char head[80];
    int is_cni = strcmp(DOOR, "cni") == 0;
    const char *form = is_cni ? "{\"cniVersion\":\"1.0.0\",\"code\":%d,\"msg\":\"Atoll: " : "{\"error\":\"Atoll: ";
    append(&out, head, snprintf(head, sizeof head, form, code));
    append_json(&out, what);
    append(&out, is_cni ? "\",\"details\":\"" : "; ", is_cni ? 13 : 2);
    append_json(&out, more);
    append(&out, "\"}\n", 3);
    write_all(1, out.data, out.size);
    exit(1);
}

/* --- the call ------------------------------------------------------------------------------------------------------------------- */

static struct bytes read_input(void)
{
    struct bytes input = {0};
    static char part[65536];
    ssize_t size;
    if (isatty(0))
        return input;
    while ((size = read(0, part, sizeof part)) != 0) {
        if (size < 0 && errno == EINTR)
            continue;
        if (size < 0)
            fail(IO_FAILED, "the standard input can't be read", strerror(errno));
        if (input.size + size > MOST)
            fail(IO_FAILED, "the standard input is too large", "the limit is 16 MiB");
        append(&input, part, size);
    }
    return input;
}

/* Those that the daemon gets; of one that is there twice the first, which is also the one that getenv finds. */
static int is_sent(const char *variable)
{
    char name[256];
    const char *value = strchr(variable, '=');
    if (!value || (size_t)(value - variable) >= sizeof name)
        return 0;
    if (strncmp(variable, "CNI_", 4) && strncmp(variable, "NETAVARK_", 9) && strncmp(variable, "RUST_LOG=", 9))
        return 0;
    memcpy(name, variable, value - variable);
    name[value - variable] = 0;
    return getenv(name) == value + 1;
}

static struct bytes encode(const char *program, int argc, char **argv, const struct bytes *input)
{
    struct bytes body = {0}, message = {0};
    char folder[4096];
    uint32_t variables = 0;
    append_text(&body, DOOR);
    append_text(&body, program);
    append_text(&body, getcwd(folder, sizeof folder) && *folder == '/' ? folder : "");
    append_number(&body, argc - 1);
    for (int i = 1; i < argc; i++)
        append_text(&body, argv[i]);
    for (char **variable = environ; *variable; variable++)
        variables += is_sent(*variable);
    append_number(&body, variables);
    for (char **variable = environ; *variable; variable++)
        if (is_sent(*variable))
            append_text(&body, *variable);
    append_field(&body, input->data ? input->data : "", input->size);
    if (body.size > MOST)
        fail(IO_FAILED, "the call is too large", "the limit is 16 MiB");
    append(&message, "ATC1", 4);
    append_field(&message, body.data, body.size);
    return message;
}

/* Whether the call must not be carried out twice. All others may: what is gone already is gone. */
static int only_once(int argc, char **argv)
{
    const char *command = getenv("CNI_COMMAND");
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "setup") == 0)
            return 1;
    return command && strcmp(command, "ADD") == 0;
}

/* --- the program that stood here before ----------------------------------------------------------------------------------------- */

static void become(const char *program, char **argv, const struct bytes *input)
{
    const char *before = getenv("ATOLL_FORWARDED");
    int fd = syscall(SYS_memfd_create, "stdin", 0);
    if (before && strcmp(before, program) == 0)
        fail(IO_FAILED, "the program that stood here before is Atoll's as well", program);
    if (fd < 0 || write_all(fd, input->data, input->size) || lseek(fd, 0, SEEK_SET) || dup2(fd, 0) || close(fd))
        fail(IO_FAILED, "the standard input can't be handed on", strerror(errno));
    setenv("ATOLL_FORWARDED", program, 1);
    argv[0] = (char *)program;
    execv(program, argv);
    unsetenv("ATOLL_FORWARDED");
    fail(IO_FAILED, program, strerror(errno));
}

/* For a user who may not use the daemon, or has none: a rootless Podman finds us as well. */
static void be_otherwise(const char *program, char **argv, const struct bytes *input)
{
    static char path[4096];
    const char *slash = strrchr(program, '/');
    int folder = slash ? slash + 1 - program : 0;
    int size = snprintf(path, sizeof path, "%.*s.atoll-replaced/%s", folder, program, program + folder);
    if (size < (int)sizeof path && access(path, X_OK) == 0)
        become(path, argv, input);
    if (*OTHERWISE && access(OTHERWISE, X_OK) == 0)
        become(OTHERWISE, argv, input);
    fail(IO_FAILED, "this user may not use the daemon of " RUN, "be root");
}

/* --- the daemon ----------------------------------------------------------------------------------------------------------------- */

static int try_connect(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = RUN "/doors.sock"};
    struct timeval patience = {.tv_sec = PATIENCE};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail(IO_FAILED, "no socket can be made", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* What a daemon may inherit of the caller's environment. Not HOME, where its interpreter would look for modules: by sudo that is often the
 * home of an ordinary user. */
static char **daemon_environment(void)
{
    static const char *const kept[] = {"PATH=", "LANG=", "LC_", "TZ=", "TMPDIR=", "DBUS_SYSTEM_BUS_ADDRESS=", "ATOLL_"};
    setenv("ATOLL_RUN", RUN, 1);
    setenv("ATOLL_STATE", STATE, 1);
    size_t count = 0, size = 0;
    while (environ[count])
        count++;
    char **found = calloc(count + 1, sizeof *found);
    for (char **variable = environ; found && *variable; variable++)
        for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
            if (strncmp(*variable, kept[i], strlen(kept[i])) == 0 && strncmp(*variable, "ATOLL_FORWARDED=", 16))
                found[size++] = *variable;
    return found;
}

/* Root of a user namespace, whose folders are another user's, has no daemon here. */
static int owns_state(void)
{
    char path[] = STATE;
    struct stat about;
    while (stat(path, &about)) {
        char *slash = strrchr(path, '/');
        if (!slash || slash == path)
            return 0;
        *slash = 0;
    }
    return about.st_uid == geteuid();
}

static long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

/* Start a daemon by a program that ends when it serves; what that prints is what went wrong. */
static void start(long deadline)
{
    char *command[] = {PYTHON, "-P", "-m", "atoll.frontends.start", NULL}, words[1024];
    char **environment = daemon_environment();
    int ends[2], status = -1, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    size_t size = 0;
    ssize_t part = 1;
    signal(SIGCHLD, SIG_DFL);
    if (!environment || null < 0 || pipe2(ends, O_CLOEXEC))
        fail(IO_FAILED, "the daemon can't be started", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        if (chdir("/") == 0 && dup2(null, 0) == 0 && dup2(ends[1], 1) == 1 && dup2(ends[1], 2) == 2)
            execve(PYTHON, command, environment);
        dprintf(ends[1], PYTHON ": %s", strerror(errno));
        _exit(1);
    }
    close(ends[1]);
    struct pollfd ready = {.fd = ends[0], .events = POLLIN};
    while (child > 0 && part && size < sizeof words - 1) {
        int found = now() < deadline ? poll(&ready, 1, 1000 * (deadline - now())) : 0;
        if (found < 0 && errno == EINTR)
            continue;
        if (found == 0) {
            kill(child, SIGKILL);
            fail(TRY_AGAIN, "the daemon takes too long to start", "its log is " RUN "/daemon.log");
        }
        if ((part = read(ends[0], words + size, sizeof words - 1 - size)) > 0)
            size += part;
        else if (part < 0 && errno != EINTR)
            break;
    }
    words[size] = 0;
    close(ends[0]);
    close(null);
    if (child < 0 || waitpid(child, &status, 0) < 0 || status)
        fail(TRY_AGAIN, "the daemon can't be started", strtok(words, "\n") ? words : "its log is " RUN "/daemon.log");
}

/* A connection to the daemon. Of many callers that find none, one starts it while the others wait. */
static int reach(const char *program, char **argv, const struct bytes *input)
{
    struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    long deadline = now() + STARTING;
    int fd, lock = -1;
    while ((fd = try_connect()) < 0) {
        if (errno == EACCES || errno == EPERM)
            be_otherwise(program, argv, input);
        if (errno != ENOENT && errno != ECONNREFUSED)
            fail(TRY_AGAIN, RUN "/doors.sock", strerror(errno));
        if (!owns_state())
            be_otherwise(program, argv, input);
        mode_t mask = umask(022);
        mkdir(RUN, 0755);
        umask(mask);
        if (lock < 0 && (lock = open(RUN "/doors.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600)) < 0)
            fail(IO_FAILED, RUN "/doors.lock", strerror(errno));
        if (now() >= deadline)
            fail(TRY_AGAIN, "the daemon of " RUN " does not serve the doors", "its log is in that folder");
        if (flock(lock, LOCK_EX | LOCK_NB) == 0) {
            if ((fd = try_connect()) >= 0)
                break;
            start(deadline);
        }
        nanosleep(&pause, NULL);
    }
    if (lock >= 0)
        close(lock);
    return fd;
}

/* How much of it came before the connection ended. */
static size_t receive(int fd, char *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t part = recv(fd, data + done, size - done, 0);
        if (part < 0 && errno == EINTR)
            continue;
        if (part < 0 && errno == EAGAIN)
            fail(TRY_AGAIN, "the daemon does not answer", "its log is " RUN "/daemon.log");
        if (part <= 0)
            break;
        done += part;
    }
    return done;
}

static int send_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t part = send(fd, data, size, MSG_NOSIGNAL);
        if (part < 0 && errno == EINTR)
            continue;
        if (part < 0 && errno == EAGAIN)
            fail(TRY_AGAIN, "the daemon does not listen", "its log is " RUN "/daemon.log");
        if (part < 0)
            return -1;
        data += part, size -= part;
    }
    return 0;
}

/* --- the answer ----------------------------------------------------------------------------------------------------------------- */

static uint32_t number_at(const char *data)
{
    const unsigned char *byte = (const unsigned char *)data;
    return (uint32_t)byte[0] << 24 | byte[1] << 16 | byte[2] << 8 | byte[3];
}

static struct bytes field_at(struct bytes *rest)
{
    uint32_t size = rest->size < 4 ? UINT32_MAX : number_at(rest->data);
    struct bytes field = {.data = rest->data + 4, .size = size};
    if (rest->size < 4 || rest->size - 4 < size)
        fail(IO_FAILED, "the daemon's answer can't be read", "put the forwarder there again");
    rest->data += 4 + size;
    rest->size -= 4 + size;
    return field;
}

static void obey(struct bytes body, char **argv, const struct bytes *input)
{
    uint32_t code = body.size < 4 ? 256 : number_at(body.data);
    if (code > 255)
        fail(IO_FAILED, "the daemon's answer can't be read", "put the forwarder there again");
    body.data += 4, body.size -= 4;
    struct bytes out = field_at(&body), error = field_at(&body), run = field_at(&body);
    if (run.size) {
        char *program = strndup(run.data, run.size);
        if (program)
            become(program, argv, input);
    }
    write_all(2, error.data, error.size);
    exit(write_all(1, out.data, out.size) && !code ? 1 : (int)code);
}

int main(int argc, char **argv)
{
    /* The descriptors that we open must not become these. */
    for (int fd; (fd = open("/dev/null", O_RDWR)) >= 0;)
        if (fd > 2) {
            close(fd);
            break;
        }
    const char *program = (const char *)getauxval(AT_EXECFN);
    if (argc == 0) /* kernels before 5.18 allow it: the arguments would run into the environment */
        return 1;
    if (!program)
        program = argv[0];
    struct bytes input = read_input(), call = encode(program, argc, argv, &input);
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        char head[8];
        int fd = reach(program, argv, &input);
        size_t got = send_all(fd, call.data, call.size) ? 0 : receive(fd, head, sizeof head);
        if (got == sizeof head) {
            struct bytes body = {.size = number_at(head + 4)};
            if (memcmp(head, "ATA1", 4) || body.size > MOST || !(body.data = malloc(body.size + 1)))
                fail(IO_FAILED, "the daemon's answer can't be read", "put the forwarder there again");
            if (receive(fd, body.data, body.size) == body.size)
                obey(body, argv, &input);
        }
        close(fd);
        /* From the answer's first byte on it may have been carried out. */
        if (got && only_once(argc, argv))
            fail(TRY_AGAIN, "the daemon ended while it carried this out", "what it had begun is taken back when it starts again");
    }
    fail(TRY_AGAIN, "the daemon of " RUN " hangs up", "its log is in that folder; is this forwarder as new as the daemon?");
}
