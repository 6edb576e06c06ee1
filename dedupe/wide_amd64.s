#include "textflag.h"

// Two arrays of 16-bit sums lie on the stack: of the windows that begin at even
// positions, then of those at odd ones. Each has room for 32 bytes a group, 64
// for what the last windows take in, and 64 that are read in vain.
#define ODD 2176

// BROADCAST puts two equal words into all of Y0.
#define BROADCAST(words) \
	MOVL words, AX \
	VMOVD AX, X0 \
	VPBROADCASTD X0, Y0

// DOUBLE makes, of the sums of windows, those of windows twice as long: the one
// at a position times Y0, and the one shift bytes further on in the array. It
// leaves them in Y1 (even) and Y2 (odd).
#define DOUBLE(shift) \
	VPMULLW (SP)(R8*1), Y0, Y1 \
	VPADDW shift(SP)(R8*1), Y1, Y1 \
	VPMULLW ODD(SP)(R8*1), Y0, Y2 \
	VPADDW (ODD+shift)(SP)(R8*1), Y2, Y2

// KEEP puts them where the others were.
#define KEEP \
	VMOVDQU Y1, (SP)(R8*1) \
	VMOVDQU Y2, ODD(SP)(R8*1)

// func sampleGroups(masks *uint32, b *byte, groups int)
TEXT ·sampleGroups(SB), 0, $4352-24
	MOVQ masks+0(FP), DI
	MOVQ b+8(FP), SI
	MOVQ groups+16(FP), CX
	SHLQ $5, CX

	BROADCAST($0x253d253d)
	LEAQ 64(CX), R9
	XORQ R8, R8
two:
	VMOVDQU (SI)(R8*1), Y1
	VMOVDQU 1(SI)(R8*1), Y2
	VPMADDUBSW Y0, Y1, Y1
	VPMADDUBSW Y0, Y2, Y2
	KEEP
	ADDQ $32, R8
	CMPQ R8, R9
	JB two

	BROADCAST($0x9e379e37)
	XORQ R8, R8
four:
	DOUBLE(2)
	KEEP
	ADDQ $32, R8
	CMPQ R8, R9
	JB four

	BROADCAST($0x79b979b9)
	XORQ R8, R8
eight:
	DOUBLE(4)
	KEEP
	ADDQ $32, R8
	CMPQ R8, R9
	JB eight

	BROADCAST($0x7f4b7f4b)
	XORQ R8, R8
sixteen:
	DOUBLE(8)
	KEEP
	ADDQ $32, R8
	CMPQ R8, R9
	JB sixteen

	BROADCAST($0xc2b3c2b3)
	LEAQ 32(CX), R9
	XORQ R8, R8
thirtytwo:
	DOUBLE(16)
	KEEP
	ADDQ $32, R8
	CMPQ R8, R9
	JB thirtytwo

	BROADCAST($0x7edb7edb) // wideMost
	VMOVDQU Y0, Y3
	BROADCAST($0x27d527d5)
	VPCMPEQW Y4, Y4, Y4
	VPSRLW $8, Y4, Y4 // the lower byte of each word: an even position
	XORQ R8, R8
sixtyfour:
	DOUBLE(32)
	VPCMPGTW Y3, Y1, Y1
	VPCMPGTW Y3, Y2, Y2
	VPAND Y4, Y1, Y1
	VPANDN Y2, Y4, Y2
	VPOR Y1, Y2, Y1
	VPMOVMSKB Y1, AX
	MOVL AX, (DI)
	ADDQ $4, DI
	ADDQ $32, R8
	CMPQ R8, CX
	JB sixtyfour

	VZEROUPPER
	RET
