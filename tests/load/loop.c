/*
 * What a token can do: a tight PKCS#11 loop in C, the yardstick of `signer bench`.
 *
 *   plain  every thread signs with the token objects, as everybody writes it
 *   best   every thread signs with session copies of them (C_CopyObject)
 *
 * Keys are looked up before the clock starts. With several keys, each thread
 * signs runs of 100 with one key, then goes on to the next. The PIN is read from
 * a file: arguments are visible to every process of the machine. Prints one JSON
 * object; anything that goes wrong ends the program with a text and status 1.
 *
 * With --step it prints "ready", measures once for every line of its standard input,
 * and ends where the input ends. Between measurements it uses no CPU.
 *
 *   cc -O2 -Wall -Wextra -o build/loop tests/load/loop.c -ldl -lpthread -lcrypto
 */
#define _GNU_SOURCE
#define CRYPTOKI_COMPAT
#include <p11-kit-1/p11-kit/pkcs11.h>

#include <dlfcn.h>
#include <getopt.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUN = 100, DIGEST = 32, ID_MAX = 64, SIGNATURE_MAX = 512, THREADS_MAX = 64 };

static CK_FUNCTION_LIST_PTR p11;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("loop: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(1);
}

static void must(CK_RV rv, const char *call)
{
	if (rv != CKR_OK)
		die("%s answered 0x%08lx", call, (unsigned long)rv);
}

static void *allocate(size_t count, size_t size)
{
	void *memory = calloc(count ? count : 1, size);

	if (!memory)
		die("out of memory");
	return memory;
}

/* ---- mechanisms: each signs a SHA-256 digest, but for EdDSA a message of 32 bytes ---- */

static CK_RSA_PKCS_PSS_PARAMS pss = {CKM_SHA256, CKG_MGF1_SHA256, DIGEST};

/* DigestInfo of SHA-256 up to the digest: RFC 8017, section 9.2, note 1. */
static const unsigned char digest_info[] = {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60,
					    0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
					    0x01, 0x05, 0x00, 0x04, 0x20};

#ifndef CKM_EDDSA
#define CKM_EDDSA 0x1057UL /* PKCS#11 v3.0, section 2.3.15 */
#endif

struct mechanism {
	const char *name;
	CK_MECHANISM ck;
	const unsigned char *prefix;
	size_t prefix_length;
	int padding; /* OpenSSL's, for --check */
};

static struct mechanism mechanisms[] = {
	{"ecdsa", {CKM_ECDSA, NULL, 0}, NULL, 0, 0},
	{"rsa-pkcs", {CKM_RSA_PKCS, NULL, 0}, digest_info, sizeof digest_info, RSA_PKCS1_PADDING},
	{"rsa-pss", {CKM_RSA_PKCS_PSS, &pss, sizeof pss}, NULL, 0, RSA_PKCS1_PSS_PADDING},
	{"eddsa", {CKM_EDDSA, NULL, 0}, NULL, 0, 0},
};

/* ---- options ---- */

static struct {
	const char *module, *token, *pin_file, *ids, *check;
	struct mechanism *mechanism;
	int best, threads, step;
	double seconds;
} options = {.threads = 2, .seconds = 4};

static struct mechanism *find_mechanism(const char *name)
{
	for (size_t i = 0; i < sizeof mechanisms / sizeof *mechanisms; i++)
		if (!strcmp(mechanisms[i].name, name))
			return &mechanisms[i];
	die("no mechanism \"%s\"; known: ecdsa, rsa-pkcs, rsa-pss, eddsa", name);
}

static void read_options(int argc, char **argv)
{
	static const struct option known[] = {
		{"module", 1, 0, 'm'},	{"token", 1, 0, 't'},	{"pin-file", 1, 0, 'p'},
		{"ids", 1, 0, 'i'},	{"mode", 1, 0, 'o'},	{"mechanism", 1, 0, 'e'},
		{"threads", 1, 0, 'n'}, {"seconds", 1, 0, 's'}, {"check", 1, 0, 'c'},
		{"step", 0, 0, 'w'},	{0, 0, 0, 0}};
	int option;

	options.mechanism = &mechanisms[0];
	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (option) {
		case 'm': options.module = optarg; break;
		case 't': options.token = optarg; break;
		case 'p': options.pin_file = optarg; break;
		case 'i': options.ids = optarg; break;
		case 'c': options.check = optarg; break;
		case 'e': options.mechanism = find_mechanism(optarg); break;
		case 'n': options.threads = atoi(optarg); break;
		case 's': options.seconds = atof(optarg); break;
		case 'w': options.step = 1; break;
		case 'o':
			options.best = !strcmp(optarg, "best");
			if (!options.best && strcmp(optarg, "plain"))
				die("--mode is plain or best");
			break;
		default: exit(2);
		}
	}
	if (!options.module || !options.token || !options.pin_file || !options.ids) {
		fputs("usage: loop --module FILE --token LABEL --pin-file FILE --ids FILE\n"
		      "  [--mode plain|best] [--mechanism ecdsa|rsa-pkcs|rsa-pss|eddsa]\n"
		      "  [--threads 2] [--seconds 4] [--check PUBLIC_KEY.pem] [--step]\n"
		      "--ids: one CKA_ID in hex a line; with --check exactly one\n",
		      stderr);
		exit(2);
	}
	if (options.threads < 1 || options.threads > THREADS_MAX || options.seconds <= 0)
		die("--threads is 1 to %d and --seconds above 0", THREADS_MAX);
}

/* ---- keys ---- */

struct key {
	unsigned char id[ID_MAX];
	size_t id_length;
	CK_OBJECT_HANDLE handle;
};

static struct key *keys;
static size_t key_count;

static void read_ids(void)
{
	FILE *file = fopen(options.ids, "r");
	char line[2 * ID_MAX + 3];
	size_t room = 0;

	if (!file)
		die("cannot read %s", options.ids);
	while (fgets(line, sizeof line, file)) {
		size_t digits = strspn(line, "0123456789abcdefABCDEF");

		if (!digits)
			continue;
		if (digits % 2 || digits > 2 * ID_MAX)
			die("%s holds a line that is no CKA_ID in hex", options.ids);
		if (key_count == room) {
			room = room ? 2 * room : 64;
			keys = realloc(keys, room * sizeof *keys);
			if (!keys)
				die("out of memory");
		}
		memset(&keys[key_count], 0, sizeof *keys);
		for (size_t i = 0; i < digits / 2; i++)
			sscanf(line + 2 * i, "%2hhx", &keys[key_count].id[i]);
		keys[key_count++].id_length = digits / 2;
	}
	fclose(file);
	if (!key_count)
		die("%s holds no CKA_ID", options.ids);
}

static int compare_ids(const void *a, const void *b)
{
	const struct key *x = a, *y = b;

	if (x->id_length != y->id_length)
		return x->id_length < y->id_length ? -1 : 1;
	return memcmp(x->id, y->id, x->id_length);
}

/* One enumeration for all keys: a search for each is slow on a full token. */
static void find_keys(CK_SESSION_HANDLE session)
{
	CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
	CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class}};
	CK_OBJECT_HANDLE found[256];
	CK_ULONG count;

	qsort(keys, key_count, sizeof *keys, compare_ids);
	must(p11->C_FindObjectsInit(session, template, 1), "C_FindObjectsInit");
	do {
		must(p11->C_FindObjects(session, found, 256, &count), "C_FindObjects");
		for (CK_ULONG i = 0; i < count; i++) {
			struct key wanted = {0}, *match;
			CK_ATTRIBUTE id = {CKA_ID, wanted.id, ID_MAX};

			if (p11->C_GetAttributeValue(session, found[i], &id, 1) != CKR_OK)
				continue;
			wanted.id_length = id.ulValueLen;
			match = bsearch(&wanted, keys, key_count, sizeof *keys, compare_ids);
			if (match)
				match->handle = found[i];
		}
	} while (count);
	must(p11->C_FindObjectsFinal(session), "C_FindObjectsFinal");
	for (size_t i = 0; i < key_count; i++)
		if (keys[i].handle == CK_INVALID_HANDLE)
			die("the token lacks a private key that %s names", options.ids);
}

/* ---- token ---- */

static void load_module(void)
{
	CK_C_INITIALIZE_ARGS threads = {.flags = CKF_OS_LOCKING_OK};
	CK_RV (*get)(CK_FUNCTION_LIST_PTR_PTR);
	void *module = dlopen(options.module, RTLD_NOW);

	if (!module)
		die("%s", dlerror());
	*(void **)&get = dlsym(module, "C_GetFunctionList");
	if (!get)
		die("%s is no PKCS#11 module", options.module);
	must(get(&p11), "C_GetFunctionList");
	must(p11->C_Initialize(&threads), "C_Initialize");
}

static CK_SLOT_ID find_slot(void)
{
	CK_SLOT_ID slots[64];
	CK_ULONG count = 64;
	size_t length = strlen(options.token);

	must(p11->C_GetSlotList(CK_TRUE, slots, &count), "C_GetSlotList");
	for (CK_ULONG i = 0; i < count; i++) {
		CK_TOKEN_INFO info;

		if (p11->C_GetTokenInfo(slots[i], &info) != CKR_OK || length > sizeof info.label)
			continue;
		if (memcmp(info.label, options.token, length))
			continue;
		if (length == sizeof info.label || info.label[length] == ' ')
			return slots[i];
	}
	die("no token has the label \"%s\"", options.token);
}

static CK_SESSION_HANDLE open_session(CK_SLOT_ID slot)
{
	CK_SESSION_HANDLE session;

	must(p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session), "C_OpenSession");
	return session;
}

static void log_in(CK_SESSION_HANDLE session)
{
	unsigned char pin[256];
	FILE *file = fopen(options.pin_file, "r");
	size_t length;

	if (!file)
		die("cannot read %s", options.pin_file);
	length = fread(pin, 1, sizeof pin, file);
	fclose(file);
	while (length && (pin[length - 1] == '\n' || pin[length - 1] == '\r'))
		length--;
	must(p11->C_Login(session, CKU_USER, pin, length), "C_Login");
	OPENSSL_cleanse(pin, sizeof pin);
}

/* ---- checking with software that is not the token's ---- */

static EVP_PKEY *read_public_key(void)
{
	FILE *file = fopen(options.check, "r");
	EVP_PKEY *key = file ? PEM_read_PUBKEY(file, NULL, NULL, NULL) : NULL;

	if (!key)
		die("%s holds no public key in PEM", options.check);
	fclose(file);
	if (key_count != 1)
		die("--check needs exactly one key");
	return key;
}

static EVP_PKEY_CTX *verifier(EVP_PKEY *key)
{
	EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(key, NULL);
	int padding = options.mechanism->padding;
	int ready = context && EVP_PKEY_verify_init(context) == 1;

	if (ready && padding)
		ready = EVP_PKEY_CTX_set_rsa_padding(context, padding) == 1 &&
			EVP_PKEY_CTX_set_signature_md(context, EVP_sha256()) == 1;
	if (ready && padding == RSA_PKCS1_PSS_PADDING)
		ready = EVP_PKEY_CTX_set_rsa_pss_saltlen(context, DIGEST) == 1;
	if (!ready)
		die("OpenSSL cannot verify with this key");
	return context;
}

/* PKCS#11 gives r||s (v3.1, section 6.3.1); OpenSSL wants DER. */
static size_t der(const unsigned char *raw, size_t length, unsigned char *out)
{
	ECDSA_SIG *signature = ECDSA_SIG_new();
	BIGNUM *r = BN_bin2bn(raw, (int)length / 2, NULL);
	BIGNUM *s = BN_bin2bn(raw + length / 2, (int)length / 2, NULL);
	int written;

	if (!signature || !r || !s || ECDSA_SIG_set0(signature, r, s) != 1)
		die("out of memory");
	written = i2d_ECDSA_SIG(signature, &out);
	ECDSA_SIG_free(signature);
	return (size_t)written;
}

static void check(EVP_PKEY_CTX *context, const unsigned char *digest, const unsigned char *raw,
		  size_t length)
{
	unsigned char encoded[SIGNATURE_MAX];

	if (options.mechanism->ck.mechanism == CKM_ECDSA) {
		length = der(raw, length, encoded);
		raw = encoded;
	}
	if (EVP_PKEY_verify(context, raw, length, digest, DIGEST) != 1)
		die("the token made a wrong signature");
}

/* ---- the loop ---- */

/* All threads and main meet here: when keys are ready, at the begin and end of each turn. */
static pthread_barrier_t meeting;
static atomic_bool stop, finished;

struct thread {
	pthread_t id;
	CK_SLOT_ID slot;
	EVP_PKEY *public_key;
	size_t number;
	unsigned long signatures;
};

static CK_OBJECT_HANDLE *handles_of(CK_SESSION_HANDLE session)
{
	CK_BBOOL no = CK_FALSE;
	CK_ATTRIBUTE session_object[] = {{CKA_TOKEN, &no, sizeof no}};
	CK_OBJECT_HANDLE *handles = allocate(key_count, sizeof *handles);

	for (size_t i = 0; i < key_count; i++) {
		handles[i] = keys[i].handle;
		if (options.best)
			must(p11->C_CopyObject(session, keys[i].handle, session_object, 1,
					       &handles[i]),
			     "C_CopyObject");
	}
	return handles;
}

static void *sign_in_turns(void *argument)
{
	struct thread *self = argument;
	struct mechanism *mechanism = options.mechanism;
	CK_SESSION_HANDLE session = open_session(self->slot);
	CK_OBJECT_HANDLE *handles = handles_of(session);
	EVP_PKEY_CTX *context = self->public_key ? verifier(self->public_key) : NULL;
	unsigned char input[sizeof digest_info + DIGEST], signature[SIGNATURE_MAX];
	unsigned char *digest = input + mechanism->prefix_length;
	size_t input_length = mechanism->prefix_length + DIGEST;
	size_t key = self->number * key_count / (size_t)options.threads;

	memset(input, 0x5a, sizeof input);
	if (mechanism->prefix_length)
		memcpy(input, mechanism->prefix, mechanism->prefix_length);
	digest[0] = (unsigned char)self->number;
	pthread_barrier_wait(&meeting);
	for (;;) {
		pthread_barrier_wait(&meeting);
		if (atomic_load(&finished))
			break;
		while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
			CK_ULONG length = sizeof signature;

			memcpy(digest + 8, &self->signatures, sizeof self->signatures);
			must(p11->C_SignInit(session, &mechanism->ck, handles[key]), "C_SignInit");
			must(p11->C_Sign(session, input, input_length, signature, &length),
			     "C_Sign");
			if (context)
				check(context, digest, signature, length);
			if (++self->signatures % RUN == 0)
				key = (key + 1) % key_count;
		}
		pthread_barrier_wait(&meeting);
	}
	EVP_PKEY_CTX_free(context);
	free(handles);
	return NULL;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static unsigned long total(const struct thread *threads)
{
	unsigned long signatures = 0;

	for (int i = 0; i < options.threads; i++)
		signatures += threads[i].signatures;
	return signatures;
}

/* One measurement; the threads wait at the meeting before and after it. */
static void take_turn(const struct thread *threads)
{
	struct timespec length;
	unsigned long signatures = total(threads);
	double began, seconds;

	length.tv_sec = (time_t)options.seconds;
	length.tv_nsec = (long)((options.seconds - (double)length.tv_sec) * 1e9);
	atomic_store(&stop, 0);
	pthread_barrier_wait(&meeting);
	began = now();
	nanosleep(&length, NULL);
	atomic_store(&stop, 1);
	pthread_barrier_wait(&meeting);
	seconds = now() - began;
	signatures = total(threads) - signatures;
	printf("{\"rate\": %.1f, \"signatures\": %lu, \"seconds\": %.3f}\n",
	       (double)signatures / seconds, signatures, seconds);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct thread threads[THREADS_MAX] = {0};
	EVP_PKEY *public_key;
	CK_SESSION_HANDLE session;
	CK_SLOT_ID slot;
	char line[16];

	read_options(argc, argv);
	read_ids();
	public_key = options.check ? read_public_key() : NULL;
	load_module();
	slot = find_slot();
	session = open_session(slot);
	log_in(session);
	find_keys(session);
	pthread_barrier_init(&meeting, NULL, (unsigned)options.threads + 1);
	for (int i = 0; i < options.threads; i++) {
		threads[i].slot = slot;
		threads[i].public_key = public_key;
		threads[i].number = (size_t)i;
		if (pthread_create(&threads[i].id, NULL, sign_in_turns, &threads[i]))
			die("cannot start a thread");
	}
	pthread_barrier_wait(&meeting);
	if (options.step) {
		puts("ready");
		fflush(stdout);
		while (fgets(line, sizeof line, stdin))
			take_turn(threads);
	} else {
		take_turn(threads);
	}
	atomic_store(&finished, 1);
	pthread_barrier_wait(&meeting);
	for (int i = 0; i < options.threads; i++)
		pthread_join(threads[i].id, NULL);
	p11->C_Finalize(NULL);
	EVP_PKEY_free(public_key);
	free(keys);
	return 0;
}
