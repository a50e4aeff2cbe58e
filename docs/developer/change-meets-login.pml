/*
 * A change meets a login: no session goes on, and no decision stays cached, on a version of an entry that is older than
 * the newest one that change notification has reported.
 *
 *     docs/developer/verify-model        (Debian: spin, gcc)
 *
 * One entry, EDITS edits of it, LOGINS logins at once. A version is a number; the cache holds one decision. Each statement
 * is one step of one thread; what happens under a lock in usher happens under `lock` here.
 *
 *   here                    in usher
 *   in_force                tracking/store: the newest reported version
 *   history, slot           cache: Cache::pass, Cache::stamp, Cache::holds
 *   cached, lock            cache: Cache::right, Cache::remove (one entry of moka, and_compute_with)
 *   listed, asked_to_end    sessions/registry, sessions/closer
 *   watch                   tracking/apply, tracking/actions
 *   login                   login/attempt, frontend/session/listing::list
 *
 * Assumed: every edit is reported at last, and in order (a login may see it in the directory long before); memory is
 * sequentially consistent (usher uses SeqCst for `history` and `slot`, locks for the rest); counters do not wrap.
 *
 * -DNO_SECOND_PASS, -DNO_RECHECK, -DNO_COMPARISON, -DNO_LISTING_FIRST and -DNO_CURRENT each leave one step out.
 */
#ifndef LOGINS
#define LOGINS 2
#endif
#ifndef EDITS
#define EDITS 2
#endif
#define TRIES 2

byte directory = 1;     /* the version in the directory */
byte in_force = 1;      /* the newest reported one */
byte cached = 0;        /* the version of the cached decision; 0: none */
byte history = 0;       /* counts invalidations */
byte slot = 0;          /* the count of the last one that concerned the entry */
bool lock = false;      /* of the cached decision */

byte listed[LOGINS];    /* the version of a listed session; 0: not listed */
bool asked_to_end[LOGINS];
bool accepted[LOGINS];  /* the client was sent OK */

byte finished = 0;      /* logins that have ended, either way */
bool quiet = false;     /* every edit was reported and acted upon */

inline pass(now) {
	d_step { history++; now = history };
	d_step { if :: now > slot -> slot = now :: else fi }
}

inline forget(now) {
	pass(now);
	atomic { !lock -> lock = true };
	cached = 0;
	lock = false;
#ifndef NO_SECOND_PASS
	pass(now)
#endif
}

active proctype edits() {
	byte made = 0;
	do
	:: made < EDITS -> directory++; made++
	:: else -> break
	od
}

active proctype watch() {
	byte version, now, at;
	do
	:: in_force < directory ->
		version = directory;
		in_force = version;
		forget(now);
		at = 0;
		do
		:: at < LOGINS ->
			if
			:: listed[at] != 0 && listed[at] < version -> asked_to_end[at] = true
			:: else
			fi;
			at++
		:: else -> break
		od
	:: directory == EDITS + 1 && in_force == directory -> break
	od;
	quiet = true
}

proctype login(byte self) {
	byte version, since, tries = 0;
again:
	if
	:: tries == TRIES -> goto refused
	:: else -> tries++
	fi;
	since = history;
	if
	:: cached != 0 -> version = cached;
		/* The decision was removed between the two reads. */
		if :: version == 0 -> goto again :: else fi
	:: version = directory;
		if
		:: slot <= since ->
			atomic { !lock -> lock = true };
#ifdef NO_RECHECK
			cached = version;
#else
			if
			:: slot <= since -> cached = version
			:: else
			fi;
#endif
			lock = false
		:: else
		fi
	fi;
	/* The backend accepts the login here. */
#ifndef NO_LISTING_FIRST
	listed[self] = version;
#endif
#ifndef NO_COMPARISON
	if
	:: in_force > version -> listed[self] = 0; asked_to_end[self] = false; goto again
	:: else
	fi;
#endif
#ifndef NO_CURRENT
	if
	:: slot > since -> listed[self] = 0; asked_to_end[self] = false; goto again
	:: else
	fi;
#endif
#ifdef NO_LISTING_FIRST
	listed[self] = version;
#endif
	if
	:: asked_to_end[self] -> listed[self] = 0; asked_to_end[self] = false; goto again
	:: else
	fi;
	accepted[self] = true;
refused:
	finished++
}

init {
	byte at = 0;
	atomic {
		do
		:: at < LOGINS -> run login(at); at++
		:: else -> break
		od
	};
	quiet && finished == LOGINS;
	at = 0;
	do
	:: at < LOGINS ->
		assert(!accepted[at] || asked_to_end[at] || listed[at] == in_force);
		at++
	:: else -> break
	od;
	assert(cached == 0 || cached == in_force)
}
