/*
 * A PKCS#11 module that passes every call on to another one, and is slow or wrong on demand.
 *
 *   SHIM_MODULE      the module to pass on to
 *   SHIM_CONTROL     a file that all processes map: rules, latency, counts of calls. It is made
 *                    where it is missing; filled with zeros it orders nothing. shim.py writes it.
 *   SHIM_LATENCY_US  every call takes so many microseconds longer: a network HSM
 *   SHIM_INDEX       set: searches are answered from an index, as a network HSM answers them
 *
 * RULES. A rule belongs to one function. It fits a call by its process, session, mechanism and
 * key; from the calls that fit it leaves out the first `skip` and acts on the next `times`. Of
 * several rules for a function the first that acts decides. It takes `delay_us`, then does its
 * action or returns its code, instead of the call or (`after`) after the call has succeeded.
 * Without rules a call costs one addition in the mapped file.
 *
 * INDEX. A search by class, CKA_ID and CKA_TOKEN, of the token that the process has logged in
 * to first, is answered from a table of this process: handles belong to a process. One pass over
 * the token fills it at the first such search. What this process creates, changes or destroys
 * changes the table at once. So that others see it too, every change of a token's object is an
 * entry of a journal in the mapped file; a thread follows it and goes over the token again,
 * which reads attributes of new objects only. A search waits for that thread where the journal
 * has a change of the id that it looks for (without an id: any change), and for nothing else.
 * A process that is killed between a change and its entry leaves the others' tables without it.
 * What the index costs is measured (`own_us`): a network HSM does not have it.
 *
 *   make shim
 */
#define _GNU_SOURCE
#define CRYPTOKI_COMPAT
#include <p11-kit-1/p11-kit/pkcs11.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- the functions of PKCS#11 v2.40, in the order of CK_FUNCTION_LIST ---- */

/* X(name, and the position of: session, object, mechanism, template). NO: it has none. */
enum { NO = -1 };
#define FUNCTIONS(X)                            \
	X(C_Initialize, NO, NO, NO, NO)         \
	X(C_Finalize, NO, NO, NO, NO)           \
	X(C_GetInfo, NO, NO, NO, NO)            \
	X(C_GetFunctionList, NO, NO, NO, NO)    \
	X(C_GetSlotList, NO, NO, NO, NO)        \
	X(C_GetSlotInfo, NO, NO, NO, NO)        \
	X(C_GetTokenInfo, NO, NO, NO, NO)       \
	X(C_GetMechanismList, NO, NO, NO, NO)   \
	X(C_GetMechanismInfo, NO, NO, NO, NO)   \
	X(C_InitToken, NO, NO, NO, NO)          \
	X(C_InitPIN, 0, NO, NO, NO)             \
	X(C_SetPIN, 0, NO, NO, NO)              \
	X(C_OpenSession, NO, NO, NO, NO)        \
	X(C_CloseSession, 0, NO, NO, NO)        \
	X(C_CloseAllSessions, NO, NO, NO, NO)   \
	X(C_GetSessionInfo, 0, NO, NO, NO)      \
	X(C_GetOperationState, 0, NO, NO, NO)   \
	X(C_SetOperationState, 0, NO, NO, NO)   \
	X(C_Login, 0, NO, NO, NO)               \
	X(C_Logout, 0, NO, NO, NO)              \
	X(C_CreateObject, 0, NO, NO, 1)         \
	X(C_CopyObject, 0, 1, NO, NO)           \
	X(C_DestroyObject, 0, 1, NO, NO)        \
	X(C_GetObjectSize, 0, 1, NO, NO)        \
	X(C_GetAttributeValue, 0, 1, NO, NO)    \
	X(C_SetAttributeValue, 0, 1, NO, NO)    \
	X(C_FindObjectsInit, 0, NO, NO, 1)      \
	X(C_FindObjects, 0, NO, NO, NO)         \
	X(C_FindObjectsFinal, 0, NO, NO, NO)    \
	X(C_EncryptInit, 0, 2, 1, NO)           \
	X(C_Encrypt, 0, NO, NO, NO)             \
	X(C_EncryptUpdate, 0, NO, NO, NO)       \
	X(C_EncryptFinal, 0, NO, NO, NO)        \
	X(C_DecryptInit, 0, 2, 1, NO)           \
	X(C_Decrypt, 0, NO, NO, NO)             \
	X(C_DecryptUpdate, 0, NO, NO, NO)       \
	X(C_DecryptFinal, 0, NO, NO, NO)        \
	X(C_DigestInit, 0, NO, 1, NO)           \
	X(C_Digest, 0, NO, NO, NO)              \
	X(C_DigestUpdate, 0, NO, NO, NO)        \
	X(C_DigestKey, 0, 1, NO, NO)            \
	X(C_DigestFinal, 0, NO, NO, NO)         \
	X(C_SignInit, 0, 2, 1, NO)              \
	X(C_Sign, 0, NO, NO, NO)                \
	X(C_SignUpdate, 0, NO, NO, NO)          \
	X(C_SignFinal, 0, NO, NO, NO)           \
	X(C_SignRecoverInit, 0, 2, 1, NO)       \
	X(C_SignRecover, 0, NO, NO, NO)         \
	X(C_VerifyInit, 0, 2, 1, NO)            \
	X(C_Verify, 0, NO, NO, NO)              \
	X(C_VerifyUpdate, 0, NO, NO, NO)        \
	X(C_VerifyFinal, 0, NO, NO, NO)         \
	X(C_VerifyRecoverInit, 0, 2, 1, NO)     \
	X(C_VerifyRecover, 0, NO, NO, NO)       \
	X(C_DigestEncryptUpdate, 0, NO, NO, NO) \
	X(C_DecryptDigestUpdate, 0, NO, NO, NO) \
	X(C_SignEncryptUpdate, 0, NO, NO, NO)   \
	X(C_DecryptVerifyUpdate, 0, NO, NO, NO) \
	X(C_GenerateKey, 0, NO, 1, 2)           \
	X(C_GenerateKeyPair, 0, NO, 1, 4)       \
	X(C_WrapKey, 0, 3, 1, NO)               \
	X(C_UnwrapKey, 0, 2, 1, 5)              \
	X(C_DeriveKey, 0, 2, 1, 3)              \
	X(C_SeedRandom, 0, NO, NO, NO)          \
	X(C_GenerateRandom, 0, NO, NO, NO)      \
	X(C_GetFunctionStatus, 0, NO, NO, NO)   \
	X(C_CancelFunction, 0, NO, NO, NO)      \
	X(C_WaitForSlotEvent, NO, NO, NO, NO)

#define NUMBER(name, ...) no_##name,
enum number { FUNCTIONS(NUMBER) COUNT };

static const struct positions {
	int session, object, mechanism, attributes;
} positions[COUNT] = {
#define POSITIONS(name, session, object, mechanism, attributes) \
	{session, object, mechanism, attributes},
	FUNCTIONS(POSITIONS)
};

/*
 * All arguments of PKCS#11 are words or shorter, and there are at most eight: every function is
 * called with eight. On x86-64 and AArch64 a function does not see those that it does not have.
 */
typedef CK_ULONG word;
typedef CK_RV (*function)(word, word, word, word, word, word, word, word);

struct list {
	CK_VERSION version;
	function at[COUNT];
};
_Static_assert(sizeof(struct list) == sizeof(CK_FUNCTION_LIST), "a function is missing");

static const CK_FUNCTION_LIST *real; /* the functions of the module */
static function real_at[COUNT];	     /* the same, by number */

/* ---- the mapped file; shim.py has the same structures ---- */

enum { RULES = 64, ID_MAX = 64, JOURNAL = 1024 };

enum action {
	NOTHING,
	HANG,	     /* until the rule is removed */
	ABORT,	     /* the process ends by SIGABRT */
	SEGFAULT,    /* by SIGSEGV */
	FLIP,	     /* a signature has the bit `value` flipped, in each call the next one */
	FILL,	     /* all bytes of a signature are `value` */
	RESIZE,	     /* a signature is `value` bytes long */
	OTHER_DATA,  /* C_Sign signs other data */
	WRONG_KEY,   /* C_SignInit takes the private key with the CKA_ID `other` */
	TOKEN_FLAGS, /* C_GetTokenInfo has the flags `value` besides */
	RAW_POINTS,  /* CKA_EC_POINT comes without its DER */
};

struct rule {
	_Atomic uint64_t active; /* written last */
	uint64_t function;
	uint64_t pid, session;	 /* 0: any */
	uint64_t mechanism;	 /* UINT64_MAX: any */
	uint64_t skip, times;
	uint64_t after;
	uint64_t delay_us;
	uint64_t code; /* CKR_OK: the call goes on */
	uint64_t action, value;
	uint64_t id_length, other_length; /* 0: any key */
	unsigned char id[ID_MAX], other[ID_MAX];
	_Atomic uint64_t seen, acted; /* calls that fitted; calls that it changed */
};

struct change {
	_Atomic uint64_t number; /* its place in the journal, from 1 on, written last */
	uint64_t pid, id;	 /* `id`: a hash of the CKA_ID */
};

static struct control {
	_Atomic uint64_t latency_us;
	_Atomic uint64_t rules_used; /* the rules before this one may be active */
	_Atomic uint64_t own_us;     /* time of callers that the index has taken */
	_Atomic uint64_t calls[COUNT];
	struct rule rules[RULES];
	_Atomic uint64_t changes; /* entries of the journal so far */
	_Atomic uint32_t bell;	  /* a futex, rung for each of them */
	struct change journal[JOURNAL];
} *control;

static uint64_t least_latency_us; /* SHIM_LATENCY_US */

static void *allocate(size_t size)
{
	void *memory = calloc(1, size);

	if (!memory)
		abort();
	return memory;
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void wait_us(uint64_t us)
{
	struct timespec left = {(time_t)(us / 1000000), (long)(us % 1000000 * 1000)};

	while (us && nanosleep(&left, &left) != 0)
		;
}

/* ---- what a session does ---- */

struct session {
	CK_SESSION_HANDLE handle;
	CK_SLOT_ID slot;
	CK_OBJECT_HANDLE key; /* of its signature, where a rule could ask for it */
	CK_MECHANISM_TYPE mechanism;
	CK_OBJECT_HANDLE *found; /* what an indexed search has found; NULL: there is none */
	CK_ULONG found_count, found_at;
	struct session *next;
};

static struct session *sessions;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of sessions and index */

static struct session *session_of(CK_SESSION_HANDLE handle)
{
	struct session *each = sessions;

	while (each && each->handle != handle)
		each = each->next;
	return each;
}

static void open_session(CK_SLOT_ID slot, CK_SESSION_HANDLE handle)
{
	struct session *opened = allocate(sizeof(*opened));

	opened->handle = handle;
	opened->slot = slot;
	pthread_mutex_lock(&lock);
	opened->next = sessions;
	sessions = opened;
	pthread_mutex_unlock(&lock);
}

/* Forgets a session; 0: all of them. */
static void close_session(CK_SESSION_HANDLE handle)
{
	struct session **at = &sessions;

	pthread_mutex_lock(&lock);
	while (*at) {
		struct session *each = *at;

		if (handle && each->handle != handle) {
			at = &each->next;
			continue;
		}
		*at = each->next;
		free(each->found);
		free(each);
	}
	pthread_mutex_unlock(&lock);
}

/* ---- attributes ---- */

static const CK_ATTRIBUTE *attribute(const CK_ATTRIBUTE *all, CK_ULONG count, CK_ATTRIBUTE_TYPE type)
{
	for (CK_ULONG i = 0; all && i < count; i++)
		if (all[i].type == type && all[i].pValue)
			return &all[i];
	return NULL;
}

struct identity {
	CK_OBJECT_CLASS class;
	CK_BBOOL on_token;
	CK_ULONG id_length;
	unsigned char id[256];
};

/* Reads what the index and rules want to know of an object; 0 where it is gone. */
static int identify(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, struct identity *found)
{
	CK_ATTRIBUTE all[] = {{CKA_CLASS, &found->class, sizeof(found->class)},
			      {CKA_TOKEN, &found->on_token, sizeof(found->on_token)},
			      {CKA_ID, found->id, sizeof(found->id)}};
	CK_RV rv = real->C_GetAttributeValue(session, object, all, 3);

	if (rv != CKR_OK && rv != CKR_ATTRIBUTE_TYPE_INVALID && rv != CKR_BUFFER_TOO_SMALL)
		return 0;
	found->id_length = all[2].ulValueLen <= sizeof(found->id) ? all[2].ulValueLen : 0;
	return all[0].ulValueLen == sizeof(found->class);
}

/* ---- the index ---- */

enum { BUCKETS = 1 << 15 };

struct object {
	CK_OBJECT_HANDLE handle;
	CK_SESSION_HANDLE session; /* of an object that ends with it; 0: it is on the token */
	CK_OBJECT_CLASS class;
	uint64_t hash;
	uint64_t pass; /* the pass over the token that has last seen it */
	CK_ULONG id_length;
	struct object *next_of_id, *next_of_handle;
	unsigned char id[];
};

static struct index {
	int wanted;		   /* SHIM_INDEX */
	CK_SESSION_HANDLE session; /* its own, on the token that it knows; 0: it knows none */
	CK_SLOT_ID slot;
	int filled, everything; /* private keys are in it; all objects are in it */
	int following;		/* the thread runs */
	uint64_t pass, seen;	/* passes so far; changes that the table has */
	struct object *by_id[BUCKETS], *by_handle[BUCKETS];
} known;

static pthread_mutex_t passing = PTHREAD_MUTEX_INITIALIZER; /* one pass at a time */

static uint64_t hash_of(const unsigned char *id, CK_ULONG length) /* FNV-1a */
{
	uint64_t hash = 0xcbf29ce484222325;

	for (CK_ULONG i = 0; i < length; i++)
		hash = (hash ^ id[i]) * 0x100000001b3;
	return hash;
}

static struct object *object_of(CK_OBJECT_HANDLE handle)
{
	struct object *each = known.by_handle[handle % BUCKETS];

	while (each && each->handle != handle)
		each = each->next_of_handle;
	return each;
}

static void remove_object(struct object *gone)
{
	struct object **at = &known.by_id[gone->hash % BUCKETS];

	while (*at != gone)
		at = &(*at)->next_of_id;
	*at = gone->next_of_id;
	at = &known.by_handle[gone->handle % BUCKETS];
	while (*at != gone)
		at = &(*at)->next_of_handle;
	*at = gone->next_of_handle;
	free(gone);
}

static void put_object(CK_OBJECT_HANDLE handle, CK_SESSION_HANDLE session, const struct identity *is)
{
	struct object *put = object_of(handle), **at;

	if (put)
		remove_object(put);
	put = allocate(sizeof(*put) + is->id_length);
	put->handle = handle;
	put->session = is->on_token ? 0 : session;
	put->class = is->class;
	put->hash = hash_of(is->id, is->id_length);
	put->pass = known.pass;
	put->id_length = is->id_length;
	memcpy(put->id, is->id, is->id_length);
	at = &known.by_id[put->hash % BUCKETS];
	put->next_of_id = *at;
	*at = put;
	at = &known.by_handle[handle % BUCKETS];
	put->next_of_handle = *at;
	*at = put;
}

/* Removes the objects for which `gone` is true. */
static void sweep(int (*gone)(const struct object *, uint64_t), uint64_t argument)
{
	for (int bucket = 0; bucket < BUCKETS; bucket++)
		for (struct object *each = known.by_id[bucket], *next; each; each = next) {
			next = each->next_of_id;
			if (gone(each, argument))
				remove_object(each);
		}
}

static int any(const struct object *each, uint64_t argument)
{
	return each && !argument;
}

static int ended_with(const struct object *each, uint64_t session)
{
	return each->session == session;
}

static int not_seen(const struct object *each, uint64_t pass)
{
	return !each->session && each->pass < pass;
}

/* Tells all processes of a change of an object on the token. */
static void report_change(uint64_t id)
{
	uint64_t number = atomic_fetch_add(&control->changes, 1) + 1;
	struct change *entry = &control->journal[number % JOURNAL];

	atomic_store(&entry->number, 0);
	entry->pid = (uint64_t)getpid();
	entry->id = id;
	atomic_store(&entry->number, number);
	atomic_fetch_add(&control->bell, 1);
	syscall(SYS_futex, &control->bell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Whether others changed an object with this id (0: any) from one entry to another. */
static int changed(uint64_t from, uint64_t to, uint64_t id)
{
	if (to - from >= JOURNAL)
		return 1; /* nobody knows */
	for (uint64_t number = from + 1; number <= to; number++) {
		struct change *entry = &control->journal[number % JOURNAL];

		if (atomic_load(&entry->number) != number)
			return 1; /* it is being written, or its writer was killed */
		if (entry->pid != (uint64_t)getpid() && (!id || entry->id == id))
			return 1;
	}
	return 0;
}

/* Reads the handles of one pass into `*handles`; returns how many, or -1. The caller frees. */
static long read_handles(int everything, CK_OBJECT_HANDLE **handles)
{
	CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
	CK_BBOOL yes = CK_TRUE;
	CK_ATTRIBUTE wanted[] = {{CKA_TOKEN, &yes, sizeof(yes)}, {CKA_CLASS, &class, sizeof(class)}};
	CK_ULONG room = 4096, count = 0, got = 1;

	*handles = allocate(room * sizeof(**handles));
	if (real->C_FindObjectsInit(known.session, wanted, everything ? 1 : 2) != CKR_OK)
		return -1;
	while (got) {
		if (room - count < 2048)
			*handles = realloc(*handles, (room *= 2) * sizeof(**handles));
		if (!*handles || real->C_FindObjects(known.session, *handles + count, 2048, &got) != CKR_OK)
			got = 0, count = (CK_ULONG)-1;
		else
			count += got;
	}
	real->C_FindObjectsFinal(known.session);
	return (long)count;
}

/* Takes an object of a pass over: reads it where it is new, or others have changed its id. */
static void pass_over(CK_OBJECT_HANDLE handle, uint64_t from, uint64_t to)
{
	struct identity is;
	struct object *old;

	pthread_mutex_lock(&lock);
	old = object_of(handle);
	if (old && !changed(from, to, old->hash))
		old->pass = known.pass;
	else if (identify(known.session, handle, &is))
		put_object(handle, 0, &is);
	pthread_mutex_unlock(&lock);
}

/* Goes over the token once; what is gone goes. Returns 0 if the module refuses to search. */
static int pass_over_token(int everything)
{
	uint64_t to = atomic_load(&control->changes), from = known.filled ? known.seen : to;
	CK_OBJECT_HANDLE *handles = NULL;
	long count;

	pthread_mutex_lock(&lock);
	known.pass++;
	pthread_mutex_unlock(&lock);
	count = known.session ? read_handles(everything, &handles) : -1;
	for (long i = 0; i < count; i++)
		pass_over(handles[i], from, to);
	free(handles);
	if (count < 0)
		return 0;
	pthread_mutex_lock(&lock);
	sweep(not_seen, known.pass);
	known.seen = to;
	known.filled = 1;
	known.everything = everything;
	pthread_mutex_unlock(&lock);
	return 1;
}

/*
 * Returns when the table has what others changed until now: of objects with an id, or of all
 * (0). Goes over the token only where that is necessary; returns 0 if that fails.
 */
static int catch_up(int everything, uint64_t id)
{
	uint64_t to = atomic_load(&control->changes);
	int done = 1;

	pthread_mutex_lock(&passing);
	if (!known.filled || everything > known.everything ||
	    (to > known.seen && changed(known.seen, to, id)))
		done = pass_over_token(everything | known.everything);
	else if (!id && to > known.seen)
		known.seen = to; /* all of it is our own */
	pthread_mutex_unlock(&passing);
	return done;
}

/* The thread that keeps the index up to date with what other processes change. */
static void *follow(void *unused)
{
	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10); /* callers come first */
	for (;;) {
		uint32_t bell = atomic_load(&control->bell);
		struct timespec second = {1, 0};

		if (known.filled)
			catch_up(0, 0);
		syscall(SYS_futex, &control->bell, FUTEX_WAIT, bell, &second, NULL, 0);
	}
	return unused;
}

/* Begins to know the token of a session whose user has logged in; only the first one. */
static void know_token(CK_SESSION_HANDLE logged_in)
{
	CK_SESSION_INFO of;
	pthread_t thread;

	if (!known.wanted || !control || known.session ||
	    real->C_GetSessionInfo(logged_in, &of) != CKR_OK)
		return;
	known.slot = of.slotID;
	if (real->C_OpenSession(of.slotID, CKF_SERIAL_SESSION, NULL, NULL, &known.session) != CKR_OK)
		known.session = 0;
	else if (!known.following && pthread_create(&thread, NULL, follow, NULL) == 0)
		known.following = 1;
}

/* Forgets the token: nobody is logged in any more, or it has no sessions. */
static void forget_token(void)
{
	pthread_mutex_lock(&passing);
	pthread_mutex_lock(&lock);
	sweep(any, 0);
	if (known.session)
		real->C_CloseSession(known.session);
	known.session = 0;
	known.filled = known.everything = 0;
	pthread_mutex_unlock(&lock);
	pthread_mutex_unlock(&passing);
}

/* Whether the index answers a search; it then has all that was changed until now. */
static int indexed(const struct session *session, const CK_ATTRIBUTE *wanted, CK_ULONG count)
{
	const CK_ATTRIBUTE *class = attribute(wanted, count, CKA_CLASS);
	const CK_ATTRIBUTE *id = attribute(wanted, count, CKA_ID);

	if (!known.session || !session || session->slot != known.slot)
		return 0;
	for (CK_ULONG i = 0; i < count; i++)
		if (!wanted[i].pValue || (wanted[i].type != CKA_CLASS && wanted[i].type != CKA_ID &&
					  wanted[i].type != CKA_TOKEN))
			return 0;
	return catch_up(!class || *(CK_OBJECT_CLASS *)class->pValue != CKO_PRIVATE_KEY,
			id ? hash_of(id->pValue, id->ulValueLen) : 0);
}

static int fits_search(const struct object *each, const CK_ATTRIBUTE *wanted, CK_ULONG count)
{
	for (CK_ULONG i = 0; i < count; i++) {
		const void *value = wanted[i].pValue;

		if (wanted[i].type == CKA_CLASS && each->class != *(const CK_OBJECT_CLASS *)value)
			return 0;
		if (wanted[i].type == CKA_TOKEN && (each->session == 0) != (*(const CK_BBOOL *)value == CK_TRUE))
			return 0;
		if (wanted[i].type == CKA_ID &&
		    (each->id_length != wanted[i].ulValueLen ||
		     memcmp(each->id, value, each->id_length) != 0))
			return 0;
	}
	return 1;
}

static CK_RV find_init(CK_SESSION_HANDLE handle, CK_ATTRIBUTE *wanted, CK_ULONG count)
{
	const CK_ATTRIBUTE *id = attribute(wanted, count, CKA_ID);
	uint64_t hash = id ? hash_of(id->pValue, id->ulValueLen) : 0, began = now_us();
	CK_ULONG room = 64, found = 0;
	struct session *session;
	int first = 0, last = BUCKETS;

	pthread_mutex_lock(&lock);
	session = session_of(handle);
	pthread_mutex_unlock(&lock);
	if (!indexed(session, wanted, count))
		return real->C_FindObjectsInit(handle, wanted, count);
	if (session->found)
		return CKR_OPERATION_ACTIVE;
	pthread_mutex_lock(&lock);
	session->found = allocate(room * sizeof(*session->found));
	if (id)
		first = (int)(hash % BUCKETS), last = first + 1;
	for (int bucket = first; bucket < last; bucket++)
		for (struct object *each = known.by_id[bucket]; each; each = each->next_of_id) {
			if (!fits_search(each, wanted, count))
				continue;
			if (found == room) {
				session->found = realloc(session->found,
							 (room *= 2) * sizeof(*session->found));
				if (!session->found)
					abort();
			}
			session->found[found++] = each->handle;
		}
	session->found_count = found;
	session->found_at = 0;
	pthread_mutex_unlock(&lock);
	atomic_fetch_add(&control->own_us, now_us() - began);
	return CKR_OK;
}

static CK_RV find(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE *objects, CK_ULONG most, CK_ULONG *count)
{
	struct session *session;

	pthread_mutex_lock(&lock);
	session = session_of(handle);
	pthread_mutex_unlock(&lock);
	if (!session || !session->found)
		return real->C_FindObjects(handle, objects, most, count);
	for (*count = 0; *count < most && session->found_at < session->found_count; ++*count)
		objects[*count] = session->found[session->found_at++];
	return CKR_OK;
}

static CK_RV find_final(CK_SESSION_HANDLE handle)
{
	struct session *session;

	pthread_mutex_lock(&lock);
	session = session_of(handle);
	pthread_mutex_unlock(&lock);
	if (!session || !session->found)
		return real->C_FindObjectsFinal(handle);
	free(session->found);
	session->found = NULL;
	return CKR_OK;
}

/* This process has created, changed or (`gone`) destroyed an object, which was `before`. */
static void object_changed(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle,
			   const struct identity *before, int gone)
{
	struct session *in;
	struct object *old;
	struct identity is;
	int found = !gone && identify(session, handle, &is);

	if (before && before->on_token)
		report_change(hash_of(before->id, before->id_length));
	if (found && is.on_token)
		report_change(hash_of(is.id, is.id_length));
	pthread_mutex_lock(&lock);
	old = object_of(handle);
	in = session_of(session);
	if (found && known.session && in && in->slot == known.slot)
		put_object(handle, session, &is);
	else if (gone && old)
		remove_object(old);
	pthread_mutex_unlock(&lock);
}

/* A session ends, and its objects with it; the last one logs the user out. */
static void session_ends(CK_SESSION_HANDLE handle)
{
	int last;

	pthread_mutex_lock(&lock);
	sweep(ended_with, handle);
	last = sessions && sessions->handle == handle && !sessions->next;
	pthread_mutex_unlock(&lock);
	if (last)
		forget_token();
}

/* ---- calls that are passed on ---- */

static CK_RV initialize(CK_C_INITIALIZE_ARGS *given)
{
	CK_C_INITIALIZE_ARGS locking = {.flags = CKF_OS_LOCKING_OK};

	/* The index has a thread of its own in the module. */
	return real->C_Initialize(known.wanted && !given ? &locking : given);
}

static CK_RV pass_on(enum number number, const word *w)
{
	return real_at[number](w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]);
}

/* Where a function has the address of an object that it creates; NO: it creates none. */
static int created_at(enum number number)
{
	switch (number) {
	case no_C_CreateObject:
		return 3;
	case no_C_CopyObject:
	case no_C_GenerateKey:
		return 4;
	case no_C_DeriveKey:
		return 5;
	case no_C_UnwrapKey:
	case no_C_GenerateKeyPair: /* the private key; the public key's is before it */
		return 7;
	default:
		return NO;
	}
}

/* Passes a call on with the index in between. */
static CK_RV pass_on_indexed(enum number number, const word *w)
{
	int gone = number == no_C_DestroyObject, created = created_at(number), was = 0;
	struct identity before;
	CK_RV rv;

	if (number == no_C_Initialize)
		return initialize((void *)w[0]);
	if (number == no_C_FindObjectsInit)
		return find_init(w[0], (void *)w[1], w[2]);
	if (number == no_C_FindObjects)
		return find(w[0], (void *)w[1], w[2], (void *)w[3]);
	if (number == no_C_FindObjectsFinal)
		return find_final(w[0]);
	if (number == no_C_Logout || number == no_C_CloseAllSessions || number == no_C_Finalize)
		forget_token();
	if (number == no_C_CloseSession)
		session_ends(w[0]);
	if (gone || number == no_C_SetAttributeValue)
		was = identify(w[0], w[1], &before);
	rv = pass_on(number, w);
	if (rv != CKR_OK)
		return rv;
	if (number == no_C_Login && w[1] == CKU_USER)
		know_token(w[0]);
	if (was)
		object_changed(w[0], w[1], &before, gone);
	if (number == no_C_GenerateKeyPair)
		object_changed(w[0], *(CK_OBJECT_HANDLE *)w[6], NULL, 0);
	if (created != NO)
		object_changed(w[0], *(CK_OBJECT_HANDLE *)w[created], NULL, 0);
	return rv;
}

/* ---- rules ---- */

/* The CKA_ID of the key that a call is about; 0 where it is about none. */
static CK_ULONG id_of_call(enum number number, const word *w, CK_OBJECT_HANDLE signs,
			   struct identity *is)
{
	const struct positions *at = &positions[number];
	CK_OBJECT_HANDLE object = at->object == NO ? 0 : w[at->object];
	const CK_ATTRIBUTE *id;

	if (number >= no_C_Sign && number <= no_C_SignFinal)
		object = signs;
	if (object)
		return identify(w[0], object, is) ? is->id_length : 0;
	if (at->attributes == NO)
		return 0;
	id = attribute((void *)w[at->attributes], w[at->attributes + 1], CKA_ID);
	if (!id || id->ulValueLen > sizeof(is->id))
		return 0;
	memcpy(is->id, id->pValue, id->ulValueLen);
	return id->ulValueLen;
}

static int fits(const struct rule *rule, enum number number, const word *w)
{
	const struct positions *at = &positions[number];
	CK_MECHANISM_TYPE mechanism = UINT64_MAX;
	CK_OBJECT_HANDLE signs = 0;
	struct session *session;
	struct identity is;

	if (rule->function != (uint64_t)number || (rule->pid && rule->pid != (uint64_t)getpid()))
		return 0;
	if (rule->session && (at->session == NO || rule->session != w[at->session]))
		return 0;
	pthread_mutex_lock(&lock);
	session = at->session == NO ? NULL : session_of(w[at->session]);
	if (session) {
		signs = session->key;
		mechanism = session->mechanism;
	}
	pthread_mutex_unlock(&lock);
	if (at->mechanism != NO && w[at->mechanism])
		mechanism = ((CK_MECHANISM *)w[at->mechanism])->mechanism;
	if (rule->mechanism != UINT64_MAX && rule->mechanism != mechanism)
		return 0;
	return !rule->id_length || (id_of_call(number, w, signs, &is) == rule->id_length &&
				    memcmp(is.id, rule->id, rule->id_length) == 0);
}

/* The rule that acts on a call, or NULL; `*turn` is how often it has acted before. */
static struct rule *rule_for(enum number number, const word *w, uint64_t *turn)
{
	uint64_t used = atomic_load(&control->rules_used), seen;

	for (uint64_t i = 0; i < used && i < RULES; i++) {
		struct rule *rule = &control->rules[i];

		if (!atomic_load(&rule->active) || !fits(rule, number, w))
			continue;
		seen = atomic_fetch_add(&rule->seen, 1);
		if (seen < rule->skip || seen - rule->skip >= rule->times)
			continue;
		*turn = atomic_fetch_add(&rule->acted, 1);
		return rule;
	}
	return NULL;
}

/* Does what does not depend on the call; returns the rule's code. */
static CK_RV obey(struct rule *rule)
{
	uint64_t mine = atomic_load(&rule->active);
	CK_RV code = rule->code; /* the rule may be removed meanwhile */

	wait_us(rule->delay_us);
	switch (rule->action) {
	case HANG:
		while (atomic_load(&rule->active) == mine)
			wait_us(2000);
		break;
	case ABORT:
		abort();
	case SEGFAULT:
		raise(SIGSEGV);
		break;
	default:
		break;
	}
	return code;
}

/* Finds a private key by its CKA_ID; 0 where there is none. */
static CK_OBJECT_HANDLE private_key(CK_SESSION_HANDLE session, unsigned char *id, CK_ULONG length)
{
	CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
	CK_ATTRIBUTE wanted[] = {{CKA_CLASS, &class, sizeof(class)}, {CKA_ID, id, length}};
	CK_OBJECT_HANDLE found = 0;
	CK_ULONG count = 0;

	if (real->C_FindObjectsInit(session, wanted, 2) == CKR_OK) {
		real->C_FindObjects(session, &found, 1, &count);
		real->C_FindObjectsFinal(session);
	}
	return count ? found : 0;
}

static void spoil_signature(const struct rule *rule, uint64_t turn, unsigned char *signature,
			    CK_ULONG *length)
{
	uint64_t bit = *length ? (rule->value + turn) % (8 * *length) : 0;

	if (rule->action == FLIP && *length)
		signature[bit / 8] ^= (unsigned char)(1 << (bit % 8));
	if (rule->action == FILL)
		memset(signature, (int)rule->value, *length);
	if (rule->action == RESIZE)
		*length = rule->value;
}

/* PKCS#11 up to 2.40 wraps a point in an OCTET STRING, here of less than 128 bytes. */
static CK_RV read_raw_points(word *w)
{
	CK_ATTRIBUTE *wanted = (void *)w[2], *read = allocate((w[3] + 1) * sizeof(*read));
	unsigned char point[256];
	CK_RV rv;

	memcpy(read, wanted, w[3] * sizeof(*read));
	for (CK_ULONG i = 0; i < w[3]; i++)
		if (read[i].type == CKA_EC_POINT && read[i].pValue) {
			read[i].pValue = point;
			read[i].ulValueLen = sizeof(point);
		}
	rv = real->C_GetAttributeValue(w[0], w[1], read, w[3]);
	for (CK_ULONG i = 0; i < w[3]; i++) {
		CK_ULONG room = wanted[i].ulValueLen;

		wanted[i].ulValueLen = read[i].ulValueLen;
		if (read[i].type != CKA_EC_POINT || read[i].ulValueLen == (CK_ULONG)-1)
			continue;
		wanted[i].ulValueLen -= 2;
		if (wanted[i].pValue && room >= wanted[i].ulValueLen)
			memcpy(wanted[i].pValue, point + 2, wanted[i].ulValueLen);
	}
	free(read);
	return rv;
}

/* Passes a call on, with other arguments or results where a rule says so. */
static CK_RV pass_on_spoilt(struct rule *rule, uint64_t turn, enum number number, word *w)
{
	unsigned char *other = NULL;
	CK_RV rv;

	if (rule->action == WRONG_KEY && number == no_C_SignInit)
		w[2] = private_key(w[0], rule->other, rule->other_length);
	if (rule->action == OTHER_DATA && number == no_C_Sign && w[2]) {
		other = allocate(w[2]);
		memcpy(other, (void *)w[1], w[2]);
		other[w[2] - 1] ^= 1;
		w[1] = (word)other;
	}
	if (rule->action == RAW_POINTS && number == no_C_GetAttributeValue)
		return read_raw_points(w);
	rv = known.wanted ? pass_on_indexed(number, w) : pass_on(number, w);
	free(other);
	if (rv != CKR_OK)
		return rv;
	if (number == no_C_Sign && w[3])
		spoil_signature(rule, turn, (void *)w[3], (void *)w[4]);
	if (rule->action == TOKEN_FLAGS && number == no_C_GetTokenInfo)
		((CK_TOKEN_INFO *)w[1])->flags |= rule->value;
	return rv;
}

/* ---- every call ---- */

/* Remembers what later calls of a session are about. */
static void note_call(enum number number, const word *w, int ruled)
{
	struct session *session;

	if (number == no_C_OpenSession)
		open_session(w[0], *(CK_SESSION_HANDLE *)w[4]);
	if (number == no_C_CloseSession || number == no_C_CloseAllSessions || number == no_C_Finalize)
		close_session(number == no_C_CloseSession ? w[0] : 0);
	if (number != no_C_SignInit || !ruled)
		return;
	pthread_mutex_lock(&lock);
	session = session_of(w[0]);
	if (session) {
		session->key = w[2];
		session->mechanism = ((CK_MECHANISM *)w[1])->mechanism;
	}
	pthread_mutex_unlock(&lock);
}

static CK_RV call(enum number number, word *w)
{
	uint64_t latency = least_latency_us, turn = 0;
	struct rule *rule = NULL;
	int ruled = 0;
	CK_RV rv;

	if (control) {
		atomic_fetch_add_explicit(&control->calls[number], 1, memory_order_relaxed);
		ruled = atomic_load_explicit(&control->rules_used, memory_order_relaxed) > 0;
		if (control->latency_us > latency)
			latency = control->latency_us;
	}
	wait_us(latency);
	if (ruled)
		rule = rule_for(number, w, &turn);
	if (rule && !rule->after && (rv = obey(rule)) != CKR_OK)
		return rv;
	if (rule)
		rv = pass_on_spoilt(rule, turn, number, w);
	else
		rv = known.wanted ? pass_on_indexed(number, w) : pass_on(number, w);
	if (rv == CKR_OK)
		note_call(number, w, ruled);
	if (rv == CKR_OK && rule && rule->after)
		rv = obey(rule);
	return rv;
}

#define ENTRY(name, ...)                                                                  \
	static CK_RV shim_##name(word a, word b, word c, word d, word e, word f, word g,  \
				 word h)                                                  \
	{                                                                                 \
		word w[8] = {a, b, c, d, e, f, g, h};                                     \
                                                                                          \
		return call(no_##name, w);                                                \
	}
FUNCTIONS(ENTRY)

static struct list ours = {
	.at = {
#define ADDRESS(name, ...) shim_##name,
		FUNCTIONS(ADDRESS)
	},
};

/* ---- the start ---- */

static void fail(const char *what, const char *value)
{
	fprintf(stderr, "shim: %s: %s\n", what, value ? value : "(not set)");
}

static int map_control(const char *path)
{
	int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct stat is;
	void *mapped;

	if (file < 0 || fstat(file, &is) != 0 ||
	    (is.st_size == 0 && ftruncate(file, sizeof(*control)) != 0))
		return fail("cannot open the file SHIM_CONTROL", path), 0;
	if (is.st_size != 0 && is.st_size != sizeof(*control))
		return fail("the file SHIM_CONTROL is of another version of the shim", path), 0;
	mapped = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	if (mapped == MAP_FAILED)
		return fail("cannot map the file SHIM_CONTROL", path), 0;
	control = mapped;
	return 1;
}

static void start(void)
{
	const char *path = getenv("SHIM_MODULE"), *latency = getenv("SHIM_LATENCY_US");
	void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	CK_C_GetFunctionList get;
	CK_FUNCTION_LIST *found;

	if (!module)
		return fail("cannot load SHIM_MODULE", path ? dlerror() : NULL);
	get = (CK_C_GetFunctionList)dlsym(module, "C_GetFunctionList");
	if (!get || get(&found) != CKR_OK)
		return fail("not a PKCS#11 module", path);
	if (getenv("SHIM_CONTROL") && !map_control(getenv("SHIM_CONTROL")))
		return;
	known.wanted = control && getenv("SHIM_INDEX");
	least_latency_us = latency ? strtoull(latency, NULL, 10) : 0;
	prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL); /* waits are as long as said, to 1 us */
	memcpy(real_at, ((struct list *)found)->at, sizeof(real_at));
	ours.version = found->version;
	real = found;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, start);
	if (!real)
		return CKR_GENERAL_ERROR;
	*list = (CK_FUNCTION_LIST *)&ours;
	return CKR_OK;
}
