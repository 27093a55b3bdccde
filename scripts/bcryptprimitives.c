/* The one function of bcryptprimitives.dll that programs of Rust use, for versions of Wine that have no such library. */
#include <windows.h>

/* RtlGenRandom */
BOOLEAN NTAPI SystemFunction036(PVOID bytes, ULONG count);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T count)
{
    while (count > 0) {
        ULONG piece = count > 1u << 28 ? 1u << 28 : (ULONG)count;
        if (!SystemFunction036(bytes, piece))
            return FALSE;
        bytes += piece;
        count -= piece;
    }
    return TRUE;
}
