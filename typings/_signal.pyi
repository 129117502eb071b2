from signal import ITIMER_REAL as ITIMER_REAL
from signal import SIG_DFL as SIG_DFL
from signal import SIG_UNBLOCK as SIG_UNBLOCK
from signal import SIGALRM as SIGALRM
from signal import SIGCHLD as SIGCHLD
from signal import pthread_sigmask as pthread_sigmask
from signal import setitimer as setitimer
from signal import signal as signal
