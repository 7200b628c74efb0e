/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Children that are programs of others. They are started by vfork(): a fork() would copy the page
 * tables of a process with registered memory, and what the parent writes next would no longer be
 * what its network card reads.
 */
#include "tool_child.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bootstrap/sock.h"
#include "page.h"

/* The child's part until it is the program; shares the parent's memory, so it only calls. */
static void become(
	char *const argv[], const int output[2], int input, pid_t parent, volatile int *error)
{
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(127);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(input, STDIN_FILENO);
	dup2(output[1], STDOUT_FILENO);
	dup2(output[1], STDERR_FILENO);
	execvp(argv[0], argv);
	*error = errno;
	_exit(127);
}

int tool_child_start(struct tool_child *child, char *const argv[])
{
	volatile int error = 0;
	pid_t parent = getpid();
	int output[2];
	int input = open("/dev/null", O_RDONLY | O_CLOEXEC);

	child->pid = 0;
	child->n_text = 0;
	if (input < 0 || pipe2(output, O_CLOEXEC) != 0) {
		error = errno;
		if (input >= 0)
			close(input);
		return error;
	}
	fflush(NULL);
	pid_t pid = vfork();
	if (pid == 0)
		become(argv, output, input, parent, &error);
	if (pid < 0)
		error = errno;
	close(input);
	close(output[1]);
	if (error == 0) {
		fcntl(output[0], F_SETFL, O_NONBLOCK);
		child->pid = pid;
		child->fd = output[0];
		return 0;
	}
	close(output[0]);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return error;
}

/* Takes what is in the pipe; of a long text the end is kept. False: the pipe's end. */
static bool take_output(struct tool_child *child)
{
	for (;;) {
		size_t room = sizeof(child->text) - 1 - child->n_text;
		if (room == 0) {
			size_t kept = child->n_text / 2;
			memmove(child->text, child->text + child->n_text - kept, kept + 1);
			child->n_text = kept;
			continue;
		}
		ssize_t n = read(child->fd, child->text + child->n_text, room);
		if (n <= 0)
			return n < 0 && (errno == EAGAIN || errno == EINTR);
		child->n_text += (size_t)n;
		child->text[child->n_text] = '\0';
	}
}

static void reap(struct tool_child *child)
{
	while (waitpid(child->pid, &child->status, 0) < 0 && errno == EINTR)
		;
	close(child->fd);
	child->pid = 0;
}

bool tool_child_watch(struct tool_child *child, int timeout_ms)
{
	struct pollfd pollfd = {.fd = child->fd, .events = POLLIN};
	int64_t until = perf_now() + (int64_t)timeout_ms * 1000000;
	int left = timeout_ms;

	if (child->pid == 0)
		return true;
	do {
		poll(&pollfd, 1, left);
		if (!take_output(child)) {
			reap(child);
			return true;
		}
		left = (int)((until - perf_now()) / 1000000);
	} while (left > 0);
	return false;
}

void tool_child_stop(struct tool_child *child)
{
	if (child->pid == 0)
		return;
	kill(child->pid, SIGKILL);
	reap(child);
}

bool tool_child_succeeded(const struct tool_child *child)
{
	return child->pid == 0 && WIFEXITED(child->status) && WEXITSTATUS(child->status) == 0;
}

/* The last line before *end that has letters, as [return, *length); *end moves before it. */
static const char *last_line(const char *text, size_t *end, int *length)
{
	while (*end > 0) {
		size_t stop = *end, start;
		bool says = false;
		while (stop > 0 && strchr("\n\r\t ", text[stop - 1]) != NULL)
			stop--;
		for (start = stop; start > 0 && text[start - 1] != '\n'; start--)
			says |= isalpha((unsigned char)text[start - 1]) != 0;
		*end = start;
		while (start < stop && isspace((unsigned char)text[start]))
			start++;
		*length = (int)(stop - start);
		if (says)
			return text + start;
	}
	return NULL;
}

void tool_child_last_words(const struct tool_child *child, char *text, size_t bytes)
{
	const char *lines[3];
	int lengths[3];
	size_t end = child->n_text, used = 0;
	unsigned n = 0;

	while (n < 3 && (lines[n] = last_line(child->text, &end, &lengths[n])) != NULL)
		n++;
	text[0] = '\0';
	for (unsigned i = n; i-- > 0 && used < bytes;)
		used += (size_t)snprintf(text + used, bytes - used, "%.*s%s", lengths[i], lines[i],
			i > 0 ? "; " : "");
}

uint16_t tool_free_port(void)
{
	uint16_t port = 0;
	int fd;

	if (m2n__sock_listen(NULL, 0, &fd, &port) != 0)
		return 0;
	close(fd);
	return port;
}

static bool listed(const char *path, uint16_t port)
{
	FILE *file = fopen(path, "re");
	char line[512];
	bool found = false;

	while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL) {
		unsigned local = 0, state = 0;
		if (sscanf(line, " %*[0-9]: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x", &local,
			    &state) == 2)
			found = local == port && state == 0x0A;
	}
	if (file != NULL)
		fclose(file);
	return found;
}

bool tool_port_listens(uint16_t port)
{
	return listed("/proc/self/net/tcp", port) || listed("/proc/self/net/tcp6", port);
}
