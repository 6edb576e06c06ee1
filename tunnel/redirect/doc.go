// Package redirect decides where the packets of workloads go and programs the
// kernel accordingly.
package redirect
