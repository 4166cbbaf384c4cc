package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"strings"

	pb "signer/v1"
)

const (
	record = `{"id":"0123456789ABCDEF0123456789ABCDEF","name":"NGUYEN VAN MAU","born":"1980-01-01",` +
		`"vaccine":"EU/1/20/1528","lot":"ABCD1234","dose":2,"given":"2021-07-15","facility":"01-001"}`
	certificate = `{"ver":"1.3.0","nam":{"fn":"Nguyễn","fnt":"NGUYEN","gn":"Văn Mẫu","gnt":"VAN<MAU"},` +
		`"dob":"1980-01-01","v":[{"tg":"840539006","vp":"1119349007","mp":"EU/1/20/1528",` +
		`"ma":"ORG-100030215","dn":2,"sd":2,"dt":"2021-07-15","co":"VN","is":"Ministry of Health",` +
		`"ci":"URN:UVCI:01:VN:0123456789ABCDEF0123456789ABCDEF"}]}`
	placeholder = "0123456789ABCDEF0123456789ABCDEF"
	// A TimeStampReq of RFC 3161: SHA-256, a digest whose bytes are those of digits, a nonce, certReq.
	query = "\x30\x41\x02\x01\x01\x30\x2f\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x04\x20" +
		placeholder + "\x02\x08\x4b\x3c\x2d\x1e\x0f\x6a\x7b\x58\x01\x01\xff"
	hexadecimal = "0123456789ABCDEF"
	messageSize = 200
	// A quarter of a megabyte each.
	listsInPayload   = 87_000
	membersInPayload = 16_000
	// verifyEvery: one answer in so many has its signatures verified; the rest is for the CPU.
	verifyEvery = 256
)

// request is filled with new random payloads each time that it is sent.
type request struct {
	message *pb.SignBatchRequest
	names   []string
	turn    int // which of the names is next
	step    int
	places  [][]byte // what differs in each payload
	letters bool     // as hexadecimal digits
	source  *rand.Rand
}

func newRequest(o options, number, slot int) *request {
	format, known := pb.Format_value["FORMAT_"+o.format]
	if !known {
		must(fmt.Errorf("there is no format %s", o.format))
	}
	r := &request{
		message: &pb.SignBatchRequest{Format: pb.Format(format)},
		names:   o.names, turn: number, step: o.callers,
		source: rand.New(rand.NewPCG(rand.Uint64(), uint64(number)<<32|uint64(slot))),
	}
	template := ""
	switch o.format {
	case "JWS":
		template = record
	case "HCERT":
		template = certificate
	case "TIMESTAMP":
		template = query
	}
	if o.bad != "" {
		template = badPayload(o.bad)
	}
	r.letters = template != ""
	for range o.batch {
		payload := make([]byte, messageSize)
		place := payload
		if o.bad == "empty" {
			payload, place = nil, nil
		} else if r.letters {
			payload = []byte(template)
			at := strings.Index(template, placeholder)
			place = payload[at : at+len(placeholder)]
		}
		r.message.Payloads = append(r.message.Payloads, payload)
		r.places = append(r.places, place)
	}
	return r
}

// badPayload returns a template of what does not parse; the same kinds are in workload.py.
func badPayload(kind string) string {
	switch kind {
	case "cut": // the last brace is missing
		return record[:len(record)-1]
	case "empty":
		return ""
	case "lists":
		return `["` + placeholder + `",` + strings.Repeat("[],", listsInPayload) + "NaN]"
	case "members":
		var members strings.Builder
		members.WriteString(`{"id":"` + placeholder + `"`)
		for i := range membersInPayload {
			fmt.Fprintf(&members, `,"member%05d":0`, i)
		}
		return members.String()
	}
	must(fmt.Errorf("there is no kind of bad payloads %s", kind))
	return ""
}

// next returns the request with other payloads and the next key. The one that it returned
// before must be on its way: gRPC has its bytes once a call or Send is over.
func (r *request) next() *pb.SignBatchRequest {
	r.message.Key = r.names[r.turn%len(r.names)]
	r.turn += r.step
	for _, place := range r.places {
		for i := 0; i < len(place); i += 8 {
			random := r.source.Uint64()
			for j := i; j < min(i+8, len(place)); j++ {
				place[j] = byte(random)
				if r.letters {
					place[j] = hexadecimal[random&15]
				}
				random >>= 8
			}
		}
	}
	return r.message
}

// checker reads answers: their shape always, some signatures with the public key.
type checker struct {
	format    string
	bad       bool // whether each item has to fail
	publicKey any
}

func newChecker(o options) *checker {
	c := &checker{format: o.format, bad: o.bad != ""}
	if o.publicKey != "" {
		text, err := os.ReadFile(o.publicKey)
		must(err)
		block, _ := pem.Decode(text)
		if block == nil {
			must(fmt.Errorf("%s has no public key in PEM", o.publicKey))
		}
		c.publicKey, err = x509.ParsePKIXPublicKey(block.Bytes)
		must(err)
	}
	return c
}

// good returns how many items came out as they have to; notes the others in the tally.
func (c *checker) good(answer *pb.SignBatchResponse, r *request, t *tally) int {
	if answer == nil || len(answer.Signatures) != len(r.message.Payloads) {
		must(fmt.Errorf("an answer has not one signature for each payload"))
	}
	failed := len(answer.Failures)
	if c.bad {
		if failed != len(answer.Signatures) {
			must(fmt.Errorf("%d items were signed that do not parse", len(answer.Signatures)-failed))
		}
		return failed
	}
	for _, failure := range answer.Failures {
		t.failures[reason(failure)]++
	}
	verify := c.publicKey != nil && r.source.Uint64()%verifyEvery == 0
	for i, signature := range answer.Signatures {
		if answer.Failures[int32(i)] == nil {
			must(c.shape(signature))
			if verify {
				must(c.verify(r.message.Payloads[i], signature))
			}
		}
	}
	return len(answer.Signatures) - failed
}

func (c *checker) shape(signature []byte) error {
	expected := 0
	switch key := c.publicKey.(type) {
	case *ecdsa.PublicKey:
		expected = 2 * ((key.Curve.Params().BitSize + 7) / 8)
	case *rsa.PublicKey:
		expected = key.Size()
	}
	switch {
	case len(signature) == 0:
		return fmt.Errorf("a signature is missing in an answer")
	case c.format == "MESSAGE" && expected > 0 && len(signature) != expected:
		return fmt.Errorf("a signature has %d bytes instead of %d", len(signature), expected)
	case c.format == "HCERT" && !bytes.HasPrefix(signature, []byte("HC1:")):
		return fmt.Errorf("a certificate does not begin with HC1:")
	}
	return nil
}

// verify checks raw signatures and JWS; the other formats have only their shape checked.
func (c *checker) verify(payload, signature []byte) error {
	signed := payload
	if c.format == "JWS" {
		end := bytes.LastIndexByte(signature, '.')
		if end < 0 {
			return fmt.Errorf("a JWS has no signature")
		}
		signed = signature[:end]
		encoded := base64.RawURLEncoding.EncodeToString(payload)
		if !bytes.HasSuffix(signed, []byte("."+encoded)) {
			return fmt.Errorf("a JWS has another payload than its request")
		}
		decoded, err := base64.RawURLEncoding.DecodeString(string(signature[end+1:]))
		if err != nil {
			return err
		}
		signature = decoded
	} else if c.format != "MESSAGE" {
		return nil
	}
	digest := sha256.Sum256(signed)
	switch key := c.publicKey.(type) {
	case *ecdsa.PublicKey:
		half := len(signature) / 2
		r, s := new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:])
		if !ecdsa.Verify(key, digest[:], r, s) {
			return fmt.Errorf("a signature is wrong")
		}
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature)
	}
	return nil
}
