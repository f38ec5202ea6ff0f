/* A disk whose flush takes longer: fsync and fdatasync of this process sleep before they do their work.
 *
 *     cc -O2 -shared -fPIC -o slowflush.so slowflush.c -ldl
 *     SLOWFLUSH_MICROSECONDS=2000 LD_PRELOAD=./slowflush.so python ...
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

static void pause_first(void) {
    static long microseconds = -1; /* two threads that both read it read the same */
    if (microseconds < 0) {
        const char *text = getenv("SLOWFLUSH_MICROSECONDS");
        microseconds = text ? atol(text) : 0;
    }
    if (microseconds > 0) {
        struct timespec length = {microseconds / 1000000, microseconds % 1000000 * 1000};
        prctl(PR_SET_TIMERSLACK, 1); /* else the kernel adds up to 50 microseconds */
        nanosleep(&length, NULL);
    }
}

int fsync(int descriptor) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    pause_first();
    return real(descriptor);
}

int fdatasync(int descriptor) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    pause_first();
    return real(descriptor);
}
