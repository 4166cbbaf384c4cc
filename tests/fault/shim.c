/*
 * A PKCS#11 module that passes everything on to another one and goes wrong on demand.
 *
 *   SHIM_MODULE  the module to pass on to
 *   SHIM_FAULTS  a folder of orders, read at each call:
 *     initialize   what C_Initialize does
 *     init         what C_SignInit does
 *     sign         what C_Sign does
 *     sign.once    the same, for one call of one process: the file goes with it
 *     generate     what C_GenerateKeyPair does
 *     generate.once  the same, for one call of one process
 *     generated    what it does when the pair is made
 *     destroyed    what C_DestroyObject does when the object is gone
 *
 * An order is one line: "fail 0x30" returns that value, "wrong" spoils the
 * signature, "hang" never returns, "crash" and "abort" end the process, "slow 5"
 * takes 5 ms longer. No file, no fault. For tests only.
 *
 *   cc -O2 -Wall -Wextra -Werror -shared -fPIC -o shim.so tests/fault/shim.c -ldl
 */
#define _GNU_SOURCE
#define CRYPTOKI_COMPAT
#include <p11-kit-1/p11-kit/pkcs11.h>

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static CK_FUNCTION_LIST real, ours;

/* Reads an order into line; empty where there is none. */
static void read_order(const char *name, int once, char line[64])
{
	char path[4096], mine[4128];
	FILE *file;

	line[0] = '\0';
	snprintf(path, sizeof(path), "%s/%s", getenv("SHIM_FAULTS"), name);
	if (access(path, R_OK) != 0)
		return;
	if (once) { /* renaming succeeds in one process only */
		snprintf(mine, sizeof(mine), "%s.%ld", path, (long)getpid());
		if (rename(path, mine) != 0)
			return;
		strcpy(path, mine);
	}
	file = fopen(path, "r");
	if (file == NULL)
		return;
	if (fgets(line, 64, file) == NULL)
		line[0] = '\0';
	fclose(file);
	if (once)
		unlink(path);
}

/* Carries out an order that does not depend on the call; CKR_OK: go on. */
static CK_RV obey(const char *line)
{
	if (strncmp(line, "fail ", 5) == 0)
		return strtoul(line + 5, NULL, 0);
	if (strncmp(line, "slow ", 5) == 0)
		usleep(1000 * (useconds_t)strtoul(line + 5, NULL, 0));
	if (strncmp(line, "hang", 4) == 0)
		for (;;)
			pause();
	if (strncmp(line, "crash", 5) == 0)
		raise(SIGSEGV);
	if (strncmp(line, "abort", 5) == 0)
		abort();
	return CKR_OK;
}

static CK_RV initialize(void *arguments)
{
	char line[64];
	CK_RV rv;

	read_order("initialize", 0, line);
	rv = obey(line);
	return rv != CKR_OK ? rv : real.C_Initialize(arguments);
}

static CK_RV sign_init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
	char line[64];
	CK_RV rv;

	read_order("init", 0, line);
	rv = obey(line);
	return rv != CKR_OK ? rv : real.C_SignInit(session, mechanism, key);
}

static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
		  CK_ULONG *signature_length)
{
	char line[64];
	CK_RV rv;

	read_order("sign.once", 1, line);
	if (line[0] == '\0')
		read_order("sign", 0, line);
	rv = obey(line);
	if (rv == CKR_OK)
		rv = real.C_Sign(session, data, length, signature, signature_length);
	if (rv == CKR_OK && strncmp(line, "wrong", 5) == 0)
		signature[0] ^= 1;
	return rv;
}

static CK_RV generate(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public_template,
		      CK_ULONG public_count, CK_ATTRIBUTE *private_template, CK_ULONG private_count,
		      CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key)
{
	char line[64];
	CK_RV rv;

	read_order("generate.once", 1, line);
	if (line[0] == '\0')
		read_order("generate", 0, line);
	rv = obey(line);
	if (rv == CKR_OK)
		rv = real.C_GenerateKeyPair(session, mechanism, public_template, public_count,
					    private_template, private_count, public_key, private_key);
	if (rv != CKR_OK)
		return rv;
	read_order("generated", 0, line);
	return obey(line);
}

static CK_RV destroy(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
	char line[64];
	CK_RV rv = real.C_DestroyObject(session, object);

	if (rv != CKR_OK)
		return rv;
	read_order("destroyed", 0, line);
	return obey(line);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
	CK_C_GetFunctionList get;
	CK_FUNCTION_LIST *found;
	void *module = dlopen(getenv("SHIM_MODULE"), RTLD_NOW | RTLD_LOCAL);

	if (module == NULL)
		return CKR_GENERAL_ERROR;
	get = (CK_C_GetFunctionList)dlsym(module, "C_GetFunctionList");
	if (get == NULL || get(&found) != CKR_OK)
		return CKR_GENERAL_ERROR;
	real = ours = *found;
	ours.C_Initialize = initialize;
	ours.C_SignInit = sign_init;
	ours.C_Sign = sign;
	ours.C_GenerateKeyPair = generate;
	ours.C_DestroyObject = destroy;
	*list = &ours;
	return CKR_OK;
}
